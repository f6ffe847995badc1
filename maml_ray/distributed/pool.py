"""A queue of work over rollout actors: dispatch, watch, hand out again, replace.

Work is keyed by iteration and task, and a worker's result depends on the key alone, so handing
a piece out twice is harmless. The driver sees receipts; the rollouts stay references.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from maml_ray.config import Settings
from maml_ray.distributed.actors import Receipt, RolloutActor
from maml_ray.distributed.failures import Failure, Observation, Stop, decide
from maml_ray.errors import ResourceError, TrainingFailed
from maml_ray.rollout import Assignment, RolloutTimings

POLL_S = 0.5
"""Longest single wait: how soon a request to stop is heard."""
FETCH_S = 30.0
"""Deadline for bringing over a small answer that is known to be there."""


@dataclass(frozen=True)
class Collected:
    """The rollouts of one meta-batch, as references in the order of their tasks."""

    rollouts: tuple[ray.ObjectRef[Any], ...]
    timings: tuple[RolloutTimings, ...]
    actors: int
    retries: int


@dataclass
class _InFlight:
    assignment: Assignment
    rollouts: ray.ObjectRef[Any]
    receipt: ray.ObjectRef[Any]
    began: float


@dataclass
class _Member:
    """One place in the pool: an actor, and what it has been given, first first."""

    name: str
    place: int
    generation: int
    actor: Any
    ready: ray.ObjectRef[Any] | None
    began: float
    work: deque[_InFlight] = field(default_factory=deque)


@dataclass
class _Batch:
    """The state of one meta-batch while it is collected."""

    parameters: ray.ObjectRef[Any]
    queue: deque[Assignment]
    attempts: dict[int, int] = field(default_factory=dict)
    done: dict[int, tuple[ray.ObjectRef[Any], RolloutTimings]] = field(default_factory=dict)
    retries: int = 0


class RolloutPool:
    """Rollout actors and the work queue over them.

    Args:
        settings: of the run.
        count: how many actors.
        namespace: Ray namespace of the actors' names.
        on_event: told of every failure that was mended.
        check_stop: called at least every half second while waiting; may raise to abandon the wait.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        namespace: str,
        *,
        on_event: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._namespace = namespace
        self._on_event = on_event
        self._check_stop = check_stop
        self._settings_ref = ray.put(settings)
        self._members = [self._recruit(place) for place in range(count)]

    def wait_until_ready(self) -> tuple[str, ...]:
        """Wait for every actor's first answer; where each runs.

        Raises:
            ResourceError: one was not up within ``cluster.start_timeout_s``.
        """
        timeout = self._settings.cluster.start_timeout_s
        deadline = time.monotonic() + timeout
        pending = {member.ready: member for member in self._members if member.ready is not None}
        places: list[str] = []
        while pending:
            self._check_stop()
            ready, _ = ray.wait(list(pending), timeout=POLL_S)
            for ref in ready:
                member = pending.pop(ref)
                places.append(self._first_answer(member))
                member.ready = None
            if pending and time.monotonic() > deadline:
                names = ", ".join(sorted(member.name for member in pending.values()))
                raise ResourceError(
                    f"{names} did not start within {timeout:.0f} s (cluster.start_timeout_s); "
                    f"asked for {len(self._members)} CPUs, free are "
                    f"{ray.available_resources().get('CPU', 0):.0f} of "
                    f"{ray.cluster_resources().get('CPU', 0):.0f}: free some, or lower "
                    "cluster.rollout_actors"
                )
        return tuple(places)

    def collect(
        self, parameters: ray.ObjectRef[Any], assignments: Sequence[Assignment]
    ) -> Collected:
        """Have every assignment rolled out with ``parameters``, by whoever is free.

        Raises:
            TrainingFailed: a piece of work raised, or failed too often.
        """
        batch = _Batch(parameters, deque(assignments))
        while len(batch.done) < len(assignments):
            self._check_stop()
            self._dispatch(batch)
            for member, ref in self._wait():
                self._handle(batch, member, ref)
            self._enforce_deadlines(batch)
        order = sorted(batch.done)
        return Collected(
            rollouts=tuple(batch.done[index][0] for index in order),
            timings=tuple(batch.done[index][1] for index in order),
            actors=len(self._members),
            retries=batch.retries,
        )

    def close(self) -> None:
        """End all actors."""
        for member in self._members:
            ray.kill(member.actor)
        self._members = []

    def _recruit(self, place: int, generation: int = 0) -> _Member:
        # A killed actor gives its name back late, so a replacement has one of its own.
        name = f"rollout-{place}" + (f"-replacement-{generation}" if generation else "")
        actor: Any = (
            ray.remote(RolloutActor)
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=1,
                num_gpus=0,
                scheduling_strategy="SPREAD",
                max_restarts=0,  # the pool replaces, so that a lost node and a lost process are one
            )
            .remote(name, self._settings_ref)
        )
        return _Member(name, place, generation, actor, actor.ready.remote(), time.monotonic())

    def _first_answer(self, member: _Member) -> str:
        assert member.ready is not None
        try:
            place: str = ray.get(member.ready, timeout=FETCH_S)
        except RayError as error:
            raise TrainingFailed(f"{member.name} could not start: {reason(error)}") from None
        return place

    def _dispatch(self, batch: _Batch) -> None:
        """Give free actors work; a second piece ahead, while there is plenty, hides the way."""
        for depth in (1, 2):
            for member in self._members:
                plenty = depth == 1 or len(batch.queue) > len(self._members)
                if member.ready is None and len(member.work) < depth and batch.queue and plenty:
                    self._assign(batch, member, batch.queue.popleft())

    def _assign(self, batch: _Batch, member: _Member, assignment: Assignment) -> None:
        rollouts, receipt = member.actor.roll_out.options(
            name=f"collect[{assignment}]", num_returns=2
        ).remote(batch.parameters, assignment)
        member.work.append(_InFlight(assignment, rollouts, receipt, time.monotonic()))

    def _wait(self) -> list[tuple[_Member, ray.ObjectRef[Any]]]:
        """What has been answered: receipts, and first words of replacements."""
        waiting: dict[ray.ObjectRef[Any], _Member] = {}
        for member in self._members:
            if member.ready is not None:
                waiting[member.ready] = member
            for item in member.work:
                waiting[item.receipt] = member
        answered, _ = ray.wait(list(waiting), timeout=POLL_S)
        return [(waiting[ref], ref) for ref in answered]

    def _handle(self, batch: _Batch, member: _Member, ref: ray.ObjectRef[Any]) -> None:
        if ref == member.ready:
            self._first_answer(member)
            member.ready = None
            return
        item = next((item for item in member.work if item.receipt == ref), None)
        if item is None:  # its actor has been replaced while this answer was under way
            return
        try:
            receipt: Receipt = ray.get(ref, timeout=FETCH_S)
        except RayTaskError as error:
            self._fail(batch, member, Failure.WORK_RAISED, reason(error), item)
        except RayError as error:
            self._fail(batch, member, Failure.ACTOR_DIED, reason(error))
        else:
            member.work.remove(item)
            if member.work:
                member.work[0].began = time.monotonic()
            batch.done[receipt.task_index] = (item.rollouts, receipt.timings)

    def _enforce_deadlines(self, batch: _Batch) -> None:
        now, limits = time.monotonic(), self._settings.cluster
        for member in list(self._members):
            if member.work and now - member.work[0].began > limits.task_timeout_s:
                told = f"cluster.task_timeout_s is {limits.task_timeout_s:.0f}"
                self._fail(batch, member, Failure.TIMED_OUT, told)
            elif member.ready is not None and now - member.began > limits.start_timeout_s:
                raise TrainingFailed(
                    f"the replacement of {member.name} did not start within "
                    f"{limits.start_timeout_s:.0f} s (cluster.start_timeout_s)"
                )

    def _fail(
        self,
        batch: _Batch,
        member: _Member,
        failure: Failure,
        error: str,
        item: _InFlight | None = None,
    ) -> None:
        """Decide and act on a failure; the work at the head of the actor's queue is to blame."""
        blamed = (item or member.work[0]).assignment
        attempts = batch.attempts[blamed.task_index] = batch.attempts.get(blamed.task_index, 0) + 1
        observation = Observation(failure, str(blamed), member.name, attempts, error)
        decision = decide(observation, max_attempts=self._settings.cluster.max_task_attempts)
        if isinstance(decision, Stop):
            raise TrainingFailed(decision.message)
        self._on_event(decision.message)
        batch.queue.extendleft(item.assignment for item in reversed(member.work))
        batch.retries += len(member.work)
        member.work.clear()
        ray.kill(member.actor)
        self._members[self._members.index(member)] = self._recruit(
            member.place, member.generation + 1
        )


def reason(error: BaseException) -> str:
    """An error that crossed processes in one line: its own message, without the remote trace."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and str(cause):
        return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        (lines[-1] if isinstance(error, RayTaskError) else lines[0])[:300] if lines else repr(error)
    )
