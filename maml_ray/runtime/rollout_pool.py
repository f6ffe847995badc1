"""Dispatch rollout work to actors, watch it, and requeue what is lost.

The actor group keeps the actors; the pool keeps track of who works on what. The driver fetches
only a RolloutInfo per task; the rollouts stay references.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from maml_ray.common.errors import ResourceError, UserError
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment, RolloutTimings
from maml_ray.runtime.actor_group import FETCH_TIMEOUT_S, PROGRESS_INTERVAL_S, ActorGroup
from maml_ray.runtime.actor_handle import (
    ActorHandle,
    InFlight,
    describe_error,
    describe_heartbeats,
)
from maml_ray.runtime.actors import ActorLocation, RolloutInfo
from maml_ray.runtime.capacity import describe_free_resources
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.ray_internals import get_unplaced_actors
from maml_ray.runtime.run_context import RunContext
from maml_ray.runtime.work_queue import WorkBatch, WorkCounts, WorkQueue

POLL_S = 0.5
"""Longest single wait in seconds: how soon a request to stop takes effect."""
SCALE_INTERVAL_S = 0.1
"""Seconds between two passes over all actors while none starts or dies: with a thousand actors the
passes add up."""
_NAMES_SHOWN = 4
"""Actors named in one message; beyond that only their number is given."""
_STALL_FACTOR = 10.0
"""An actor is taken to hang after this many times the median duration of a piece of work."""


@dataclass(frozen=True)
class RolloutRef:
    """Reference to one task's rollouts.

    Attributes:
        rollouts: reference to the TaskRollouts.
        timings: seconds spent in each part of the work.
        node_id: node whose object store holds them.
    """

    rollouts: ray.ObjectRef[Any]
    timings: RolloutTimings
    node_id: str


@dataclass(frozen=True)
class CollectedBatch:
    """The rollouts of one meta-batch in task order.

    Attributes:
        rollouts: one per task.
        actors: number of available actors.
        counts: outcomes of the work.
    """

    rollouts: tuple[RolloutRef, ...]
    actors: int
    counts: WorkCounts


class RolloutPool:
    """Rollout actors and the work queue that they serve.

    Args:
        settings: of the run.
        context: capacity of the cluster, failure handling, messages and stop requests.
    """

    def __init__(self, settings: Settings, context: RunContext) -> None:
        self._limits = settings.cluster
        self._context, self._capacity = context, context.capacity
        self._actors = ActorGroup(settings, context)
        self._queue: WorkQueue[RolloutRef] = WorkQueue()
        self._durations: deque[float] = deque(maxlen=64)
        self._reported_at = self._finished_at = time.monotonic()
        self._next_scaling = 0.0

    def wait_until_ready(self) -> tuple[ActorLocation, ...]:
        """Start as many actors as the cluster has room for, and wait for them.

        Returns:
            Where they run. Actors that wait for an autoscaler's nodes join later.

        Raises:
            ResourceError: fewer than ``cluster.min_rollout_actors`` were up within
                ``cluster.start_timeout_s``.
        """
        timeout, least = self._limits.start_timeout_s, self._limits.min_rollout_actors
        started_at = self._reported_at = time.monotonic()
        self._actors.scale_to_cluster()
        while self._actors.num_ready < max(least, self._num_startable()):
            self._context.check_stop()
            waited = time.monotonic() - started_at
            if waited > timeout:
                break
            self._report_start(waited)
            for handle, ref in self._wait():
                self._handle(handle, ref)
            self._actors.scale_to_cluster()
        ready = self._actors.locations
        if len(ready) >= least:
            return tuple(ready)
        starting = _describe_actors([handle.name for handle in self._actors.starting])
        raise ResourceError(
            f"{starting} did not start within {timeout:.0f} s "
            f"(cluster.start_timeout_s); {len(ready)} of at least {least} rollout actors are up, "
            f"{describe_free_resources()}: free some, or lower cluster.min_rollout_actors"
        )

    def collect(
        self,
        parameters: ray.ObjectRef[Any],
        assignments: Sequence[Assignment],
        earlier: CollectedBatch | None = None,
    ) -> CollectedBatch:
        """Roll out every assignment with ``parameters`` and wait for the results.

        Args:
            parameters: reference to PolicyParameters.
            assignments: one per task.
            earlier: rollouts of the same assignments that may have been lost: those on nodes that
                are gone are collected again, or all of them if no node is gone.

        Raises:
            TrainingFailed: a piece of work raised or failed too often, a fault budget is spent, or
                no actor was up for ``cluster.empty_timeout_s``.
        """
        return self.finish(self.submit(parameters, assignments, earlier))

    def submit(
        self,
        parameters: ray.ObjectRef[Any],
        assignments: Sequence[Assignment],
        earlier: CollectedBatch | None = None,
    ) -> WorkBatch[RolloutRef]:
        """Queue a meta-batch in addition to those in progress; arguments as for :meth:`collect`.

        :meth:`dispatch`, :meth:`step` and :meth:`finish` hand it out, earlier iterations first.
        """
        reused = self._surviving(earlier) if earlier else {}
        counts = WorkCounts()
        if earlier:
            repeated = len(assignments) - len(reused)
            counts = earlier.counts + WorkCounts(used=-repeated, lost=repeated)
        batch = WorkBatch(assignments, reused, parameters=parameters, counts=counts)
        self._queue.add(batch)
        self._finished_at = time.monotonic()
        return batch

    def finish(
        self,
        batch: WorkBatch[RolloutRef],
        on_partial: Callable[[Sequence[RolloutRef]], None] | None = None,
    ) -> CollectedBatch:
        """Wait for a submitted meta-batch; raises as :meth:`collect`.

        Args:
            batch: the meta-batch.
            on_partial: receives finished rollouts, each task once, while some actors are idle and
                others still work: the idle actors' cores can prepare them.
        """
        num_reported = 0
        try:
            while not batch.is_finished:
                self._context.check_stop()
                self.step()
                if on_partial is not None and self._has_idle_actors(batch):
                    new = batch.results_after(num_reported)
                    if len(new) >= batch.num_unfinished:  # half, then half of the rest: few calls
                        num_reported += len(new)
                        on_partial(new)
            return CollectedBatch(batch.results(), len(self._actors.available), batch.counts)
        finally:
            self._queue.remove(batch)

    def dispatch(self) -> None:
        """Give work to free actors.

        While there is plenty of work each gets a second piece, which hides the transfer time.
        """
        available = self._actors.available
        for batch in self._queue:
            for depth in (1, 2) if batch.num_queued else ():
                for handle in available:
                    may_take = depth == 1 or self._may_take_second(handle, batch)
                    if len(handle.work) < depth and batch.num_queued and may_take:
                        handle.submit(batch.parameters, batch.next_item())
            self._duplicate(batch, [handle for handle in available if not handle.work])
            if batch.num_queued:  # the rest of it precedes all later batches
                return

    def step(self, wake_on: Sequence[ray.ObjectRef[Any]] = ()) -> None:
        """Dispatch work, wait up to ``POLL_S`` for the next replies, and handle them.

        Args:
            wake_on: further references, any of which ends the wait.

        Raises:
            TrainingFailed: as :meth:`collect`.
        """
        scaling = time.monotonic() >= self._next_scaling
        if scaling:
            self._next_scaling = time.monotonic() + SCALE_INTERVAL_S
            self._actors.scale_to_cluster()
        if not self._queue.is_finished:
            self._actors.require_any_alive()
        self.dispatch()
        for handle, ref in self._wait(wake_on):
            self._handle(handle, ref)
        if scaling:  # after the replies, since late work may just have finished
            self._enforce_deadlines()

    @property
    def in_flight(self) -> int:
        """Number of unanswered pieces of work; between batches these are late duplicates."""
        return sum(len(handle.work) for handle in self._actors)

    def classify_loss(self, collected: CollectedBatch) -> Failure:
        """Classify lost rollouts: preemption or node failure."""
        alive, nodes = self._capacity.alive_nodes(), {one.node_id for one in collected.rollouts}
        draining = {node for node in nodes if self._capacity.is_draining(node)}
        if draining and not nodes - draining - alive:
            return Failure.PREEMPTED
        return Failure.ROLLOUTS_LOST

    def close(self) -> None:
        """Kill all actors."""
        self._actors.close()

    def _has_idle_actors(self, batch: WorkBatch[RolloutRef]) -> bool:
        """Return whether some actors are idle while others work on the last of the batch."""
        idle = any(not handle.work for handle in self._actors.available)
        return idle and not batch.num_queued and not batch.is_finished

    def _num_startable(self) -> int:
        """Return how many of the actors fit on the cluster; the others wait for nodes."""
        return min(len(self._actors), self._capacity.num_slots())

    def _report_start(self, waited_s: float) -> None:
        """Report which actors are starting, and periodically which have no CPU to start on."""
        starting = [handle.name for handle in self._actors.starting]
        self._context.on_status(f"starting {_describe_actors(starting)}")
        if time.monotonic() - self._reported_at <= PROGRESS_INTERVAL_S:
            return
        self._reported_at = time.monotonic()
        unplaced = sorted(set(starting).intersection(get_unplaced_actors()))
        if unplaced:
            self._context.on_event(
                f"waiting for a free CPU for {_describe_actors(unplaced)} ({waited_s:.0f} s of "
                f"{self._limits.start_timeout_s:.0f} s, cluster.start_timeout_s); "
                f"{describe_free_resources()}"
            )

    def _surviving(self, earlier: CollectedBatch) -> dict[int, RolloutRef]:
        alive = self._capacity.alive_nodes()
        kept = {i: one for i, one in enumerate(earlier.rollouts) if one.node_id in alive}
        return kept if len(kept) < len(earlier.rollouts) else {}

    def _may_take_second(self, handle: ActorHandle, batch: WorkBatch[RolloutRef]) -> bool:
        """Return whether an actor that has work may be given the next piece as well.

        Work that was lost before has an actor to itself: of two pieces, the actor may have died at
        the second before the reply to the first was sent, and the first would be blamed.
        """
        if batch.num_queued <= len(self._actors.available) or batch.next_is_repeated:
            return False
        return not any(self._queue.is_repeated(item.assignment) for item in handle.work)

    def _duplicate(self, batch: WorkBatch[RolloutRef], idle: list[ActorHandle]) -> None:
        """Give the work of stragglers to idle actors as well."""
        factor = self._limits.straggler_factor
        if factor is None or batch.num_queued or not self._durations:
            return
        limit_s = max(POLL_S, factor * median(self._durations))
        late = [handle for handle in self._actors if handle.head_age_s() > limit_s] if idle else []
        for straggler in sorted(late, key=ActorHandle.head_age_s, reverse=True):
            for item in straggler.work:
                if idle and batch.can_duplicate(item.assignment):
                    idle.pop().submit(batch.parameters, item.assignment)
                    batch.duplicate(item.assignment)

    def _wait(
        self, wake_on: Sequence[ray.ObjectRef[Any]] = ()
    ) -> list[tuple[ActorHandle, ray.ObjectRef[Any]]]:
        """Return the replies that have arrived: of finished work and of starting actors."""
        pending: dict[ray.ObjectRef[Any], ActorHandle] = {}
        for handle in self._actors:
            if handle.ready_ref is not None:
                pending[handle.ready_ref] = handle
            for item in handle.work:
                pending[item.info] = handle
        if not pending and not wake_on:
            time.sleep(POLL_S)  # there is no actor to wait for
            return []
        answered, rest = ray.wait([*pending, *wake_on], timeout=POLL_S)
        if answered and rest:  # with a thousand actors many have answered: fetch all at once
            answered += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [(pending[ref], ref) for ref in answered if ref in pending]

    def _handle(self, handle: ActorHandle, ref: ray.ObjectRef[Any]) -> None:
        if handle not in self._actors:
            return  # removed because of its previous reply, which requeued this piece as well
        if ref == handle.ready_ref:
            self._next_scaling = 0.0
            self._actors.on_ready(handle)
            return
        item = next(item for item in handle.work if item.info == ref)
        try:
            info: RolloutInfo = ray.get(ref, timeout=FETCH_TIMEOUT_S)
        except RayTaskError as error:
            # What Ray raises around the work, such as a full object store, need not recur.
            own = not isinstance(error.cause, RayError)
            failure = Failure.WORK_RAISED if own else Failure.DATA_LOST
            if isinstance(error.cause, UserError):
                failure = Failure.USER_CODE_RAISED
            self._fail(handle, failure, describe_error(error), item)
        except RayError as error:
            self._fail(handle, self._actors.classify_death(handle, error), describe_error(error))
        else:
            self._durations.append(handle.complete(item))
            self._finished_at = time.monotonic()
            rollout = RolloutRef(item.rollouts, info.timings, info.node_id)
            self._queue.finish(item.assignment, rollout)

    def _enforce_deadlines(self) -> None:
        limits = self._limits
        shortest = min(limits.stall_s, limits.task_timeout_s)
        for handle in self._actors:
            if handle.head_age_s() <= shortest:
                continue
            needed = bool(handle.work) and self._queue.needs(handle.work[0].assignment)
            limit = limits.task_timeout_s if needed else shortest
            if handle.head_age_s() > limit:
                key = "task_timeout_s" if limit == limits.task_timeout_s else "stall_s"
                self._fail(handle, Failure.TIMED_OUT, f"cluster.{key} is {limit:.0f}")
        self._actors.stop_late_starts()
        busy = [handle for handle in self._actors if handle.work]
        if busy and time.monotonic() - self._finished_at > limits.stall_s:
            self._on_stall(busy)

    def _on_stall(self, busy: list[ActorHandle]) -> None:
        """Report what each actor is doing and replace those that hang."""
        waited = time.monotonic() - self._finished_at
        self._finished_at = time.monotonic()
        names = {f"{handle.name} on {handle.location}": handle.actor for handle in busy}
        self._context.on_event(
            f"nothing has finished for {waited:.0f} s (cluster.stall_s):\n"
            f"{describe_heartbeats(names)}"
        )
        if not self._durations:  # the usual duration is unknown yet: task_timeout_s decides
            return
        limit_s = max(self._limits.stall_s, _STALL_FACTOR * median(self._durations))
        for handle in busy:
            if handle.head_age_s() > limit_s:
                typical = f"the median is {median(self._durations):.1f} s"
                self._fail(handle, Failure.STALLED, typical)

    def _fail(
        self, handle: ActorHandle, failure: Failure, error: str, item: InFlight | None = None
    ) -> None:
        """Requeue an actor's work, remove the actor and handle the failure.

        ``item`` is blamed, or the work at the head of the actor's queue.
        """
        blamed = (item or handle.work[0]).assignment
        attempts = self._queue.requeue([one.assignment for one in handle.work], blamed)
        self._actors.remove(handle)
        self._actors.recheck_node(handle.node_id)
        self._next_scaling = 0.0  # start a replacement at once
        raised = failure in (Failure.WORK_RAISED, Failure.USER_CODE_RAISED)
        if raised and not self._queue.needs(blamed):
            return  # another actor has done this work already
        report = FailureReport(failure, str(blamed), handle.name, attempts, error)
        self._context.handle_failure(report)


def _describe_actors(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(names[:_NAMES_SHOWN]) or "rollout actors") + more
