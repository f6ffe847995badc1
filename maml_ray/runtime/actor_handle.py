"""Start rollout actors, and track each one's assigned work and readiness on the driver."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from maml_ray.common.errors import UserError
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.runtime.actors import ActorLocation, RolloutActor, as_actor
from maml_ray.runtime.fault_policy import REPLACEMENT
from maml_ray.runtime.run_context import RunContext
from maml_ray.tasks.loading import PickledTasks

HEARTBEAT_TIMEOUT_S = 2.0
"""Deadline for heartbeats, in seconds: only the second thread of an actor may still answer."""


@dataclass
class InFlight:
    """A piece of work assigned to an actor.

    Attributes:
        assignment: the work.
        rollouts, info: references to its two results, the trajectories and a RolloutInfo.
        started_at: when it reached the head of the actor's queue, on the driver's clock.
    """

    assignment: Assignment
    rollouts: ray.ObjectRef[Any]
    info: ray.ObjectRef[Any]
    started_at: float


@dataclass(eq=False)
class ActorHandle:
    """One rollout actor and its queue of assigned work, oldest first.

    Attributes:
        name: Ray name of the actor.
        slot: index in the pool; a replacement takes over the slot.
        actor: Ray's own handle.
        ready_ref: pending reply that must arrive before the actor gets work; None once it has.
        pinged_at: when that reply was requested.
        location: where the actor runs; None until the first reply.
    """

    name: str
    slot: int
    actor: Any
    ready_ref: ray.ObjectRef[Any] | None
    pinged_at: float
    location: ActorLocation | None = None
    work: deque[InFlight] = field(default_factory=deque)

    @property
    def is_ready(self) -> bool:
        """Whether the actor has answered, and may be given work."""
        return self.ready_ref is None

    @property
    def node_id(self) -> str | None:
        """Node on which the actor runs; None until known."""
        return self.location.node_id if self.location else None

    def ping(self) -> None:
        """Require a reply from the actor before it is given more work."""
        self.ready_ref, self.pinged_at = self.actor.ready.remote(), time.monotonic()

    def submit(self, parameters: ray.ObjectRef[Any], assignment: Assignment) -> None:
        """Append ``assignment`` to the actor's queue."""
        # The name leaves out the iteration: Ray keeps statistics of every name that it has seen, in
        # the driver and in the actors, which grew by 50 KB with each new name.
        rollouts, info = self.actor.roll_out.options(
            name=f"collect[task {assignment.task_index}]", num_returns=2
        ).remote(parameters, assignment)
        self.work.append(InFlight(assignment, rollouts, info, time.monotonic()))

    def complete(self, item: InFlight) -> float:
        """Remove a finished ``item``; return its duration in seconds on the driver's clock."""
        now = time.monotonic()
        self.work.remove(item)
        if self.work:
            self.work[0].started_at = now
        return now - item.started_at

    def head_age_s(self) -> float:
        """Return the seconds spent on the head of the actor's queue; 0 if the queue is empty."""
        return time.monotonic() - self.work[0].started_at if self.work else 0.0


class ActorFactory:
    """Start rollout actors under names that are unique within the run.

    Args:
        settings: of the run, which the actors receive.
        context: of the run; its namespace and tasks are the actors' as well.
    """

    def __init__(self, settings: Settings, context: RunContext) -> None:
        self._settings_ref = ray.put(settings)
        own_tasks = context.own_tasks
        self._own_tasks_ref = ray.put(None if own_tasks is None else PickledTasks.of(own_tasks))
        self._namespace = context.namespace
        self._generations: Counter[int] = Counter()

    def start(self, existing: Iterable[ActorHandle]) -> ActorHandle:
        """Start an actor in the lowest slot that none of ``existing`` occupies."""
        occupied = {handle.slot for handle in existing}
        slot = next(index for index in range(len(occupied) + 1) if index not in occupied)
        generation = self._generations[slot]
        self._generations[slot] += 1
        # Ray frees the name of a killed actor late, so a replacement gets a name of its own.
        name = f"rollout-{slot}" + (f"{REPLACEMENT}{generation}" if generation else "")
        actor: Any = (
            as_actor(RolloutActor)
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=1,
                num_gpus=0,
                scheduling_strategy=_scheduling_strategy(),
                max_restarts=0,  # the pool replaces lost nodes and lost processes in the same way
            )
            .remote(name, self._settings_ref, self._own_tasks_ref)
        )
        return ActorHandle(name, slot, actor, actor.ready.remote(), time.monotonic())


def _scheduling_strategy() -> Any:
    """Spread over the nodes, or stay in the driver's placement group if it has one.

    A trial of Ray Tune has one: it reserves the actors' CPUs, and outside it none may be free.
    """
    group = get_current_placement_group()
    return "SPREAD" if group is None else PlacementGroupSchedulingStrategy(group)


def describe_heartbeats(actors: dict[str, Any]) -> str:
    """Ask actors what they are doing; return one line each, within ``HEARTBEAT_TIMEOUT_S``."""
    refs = {name: actor.heartbeat.remote() for name, actor in actors.items()}
    answered, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=HEARTBEAT_TIMEOUT_S)
    lines = []
    for name, ref in refs.items():
        if ref not in answered:
            text = (
                f"no answer within {HEARTBEAT_TIMEOUT_S:.0f} s: its process hangs, or its node is "
                "unreachable"
            )
        else:
            try:
                text = str(ray.get(ref, timeout=HEARTBEAT_TIMEOUT_S))
            except RayError as error:
                text = describe_error(error)
        lines.append(f"  {name}: {text}")
    return "\n".join(lines)


_DEATHS = (
    (
        "running low on memory|memory usage threshold",
        "Ray killed it because its node ran out of memory: cluster.rollout_actors limits the "
        "number of actors",
    ),
    (r"killed by `?ray\.kill", "it was killed by ray.kill"),
    ("its node has died", "its node has died or lost its connection"),
    ("its owner has died", "the driver that started it has gone"),
    (r"exits? with an exit code (\d+)", r"its code ended the process with exit code \1"),
    ("exit_actor|SystemExit|exit type: USER_ERROR", "its code ended the process"),
    (
        "exit type: SYSTEM_ERROR",
        "its process was killed or crashed; if by the system, for want of memory, dmesg says so",
    ),
    ("is (temporarily )?unavailable", "its process no longer answers"),
)
"""What Ray says of an actor's death, in this order, and the same in one sentence."""


def describe_error(error: BaseException) -> str:
    """Return an error from another process in one line, without the remote traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, BaseException) and str(cause):
        return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
        return lines[-1][:300]
    for pattern, words in _DEATHS:
        if match := re.search(pattern, " ".join(lines)):
            return match.expand(words)
    return next((line for line in lines if "dead because" in line), lines[0])[:300]
