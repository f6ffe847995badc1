"""The rollout actors of a pool: starting one, what each has been given, asking what it is at."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.runtime.actors import RolloutActor, watched
from maml_ray.runtime.fault_policy import REPLACEMENT
from maml_ray.runtime.heartbeat import Place

WATCH_S = 2.0
"""Deadline for an actor's answer to what it is at: its other thread may be all that works."""


@dataclass
class InFlight:
    """A piece of work that an actor has been given.

    Attributes:
        assignment: the work.
        rollouts, receipt: its results to be.
        began: when it came to the head of the actor's queue, on the driver's clock.
    """

    assignment: Assignment
    rollouts: ray.ObjectRef[Any]
    receipt: ray.ObjectRef[Any]
    began: float


@dataclass(eq=False)
class Member:
    """One rollout actor, and what it has been given, first first.

    Attributes:
        name: of the actor.
        number: its place in the pool.
        actor: the actor's handle.
        ready: the answer that is waited for before it is given work; None once it is there.
        began: when it was asked for that answer.
        place: where it runs, once known.
    """

    name: str
    number: int
    actor: Any
    ready: ray.ObjectRef[Any] | None
    began: float
    place: Place | None = None
    work: deque[InFlight] = field(default_factory=deque)

    @property
    def node_id(self) -> str | None:
        """Of the node where it runs, once known."""
        return self.place.node_id if self.place else None

    def ask_again(self) -> None:
        """Have it show that it is alive before it is given anything."""
        self.ready, self.began = self.actor.ready.remote(), time.monotonic()

    def give(self, parameters: ray.ObjectRef[Any], assignment: Assignment) -> None:
        """Have ``assignment`` rolled out, after what it has been given before."""
        # Not named after the iteration: Ray keeps figures of every name that it has seen, in the
        # driver and in the actors, which grew by 50 KB with each.
        rollouts, receipt = self.actor.roll_out.options(
            name=f"collect[task {assignment.task_index}]", num_returns=2
        ).remote(parameters, assignment)
        self.work.append(InFlight(assignment, rollouts, receipt, time.monotonic()))

    def answered(self, item: InFlight) -> float:
        """``item`` is done; the seconds that it took, as seen from here."""
        now = time.monotonic()
        self.work.remove(item)
        if self.work:
            self.work[0].began = now
        return now - item.began

    def head_age(self) -> float:
        """Seconds that the actor has been at the head of its queue; 0 when it has none."""
        return time.monotonic() - self.work[0].began if self.work else 0.0


class Recruiter:
    """Starts rollout actors, each with a name that none before it had.

    Args:
        settings: of the run.
        namespace: Ray namespace of the actors' names.
    """

    def __init__(self, settings: Settings, namespace: str) -> None:
        self._settings_ref = ray.put(settings)
        self._namespace = namespace
        self._generations: Counter[int] = Counter()

    def recruit(self, members: Iterable[Member]) -> Member:
        """A new actor, in the first place that none of ``members`` has."""
        taken = {member.number for member in members}
        number = next(place for place in range(len(taken) + 1) if place not in taken)
        generation = self._generations[number]
        self._generations[number] += 1
        # A killed actor gives its name back late, so a replacement has one of its own.
        name = f"rollout-{number}" + (f"{REPLACEMENT}{generation}" if generation else "")
        actor: Any = (
            watched(RolloutActor)
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=1,
                num_gpus=0,
                scheduling_strategy=_strategy(),
                max_restarts=0,  # the pool replaces, so that a lost node and a lost process are one
            )
            .remote(name, self._settings_ref)
        )
        return Member(name, number, actor, actor.ready.remote(), time.monotonic())


def _strategy() -> Any:
    """Over the nodes; but in the placement group of whoever trains, as a trial of Ray Tune has one.

    It holds the CPUs that the actors were promised: outside it there may be none.
    """
    group = get_current_placement_group()
    return "SPREAD" if group is None else PlacementGroupSchedulingStrategy(group)


def describe_activity(actors: dict[str, Any]) -> str:
    """What actors are at, by name: asked of each, within seconds."""
    asked = {name: actor.activity.remote() for name, actor in actors.items()}
    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=WATCH_S)
    lines = []
    for name, ref in asked.items():
        if ref not in answered:
            told = f"no answer within {WATCH_S:.0f} s: its process hangs, or its node is away"
        else:
            try:
                told = str(ray.get(ref, timeout=WATCH_S))
            except RayError as error:
                told = reason(error)
        lines.append(f"  {name}: {told}")
    return "\n".join(lines)


def reason(error: BaseException) -> str:
    """An error that crossed processes in one line: its own message, without the remote trace."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and str(cause):
        return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    deaths = [line for line in lines if "dead because" in line]
    raised = isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False)
    told = lines[-1] if raised else (deaths or lines)[0]
    return told[:300]
