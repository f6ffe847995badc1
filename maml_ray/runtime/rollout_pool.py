"""A queue of work over rollout actors: dispatch, watch, hand out again.

The roster sees to it that there are actors, as many as the cluster has CPUs; the pool knows who
has been given what. The driver sees receipts; the rollouts stay references.
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

from maml_ray.common.errors import ResourceError
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment, RolloutTimings
from maml_ray.runtime.actor_group import FETCH_S, TELL_EVERY_S, Roster
from maml_ray.runtime.actor_handle import InFlight, Member, describe_activity, reason
from maml_ray.runtime.capacity import Capacity, describe_free
from maml_ray.runtime.fault_policy import Failure, Observation
from maml_ray.runtime.heartbeat import Place, Receipt
from maml_ray.runtime.work_queue import Agenda, Batch, WorkCounts

POLL_S = 0.5
"""Longest single wait: how soon a request to stop is heard."""
TEND_EVERY_S = 0.1
"""Seconds between two rounds by every actor while none comes or goes: by a thousand they add up."""
_NAMES = 4
"""As many actors are named in a line; of a hundred the number is enough."""
_STALL_FACTOR = 10.0
"""An actor that is at a piece of work for so many times the usual time is taken to hang."""


@dataclass(frozen=True)
class Rollout:
    """One task's rollouts, as a reference, and what is known of them here."""

    rollouts: ray.ObjectRef[Any]
    timings: RolloutTimings
    node_id: str


@dataclass(frozen=True)
class Collected:
    """The rollouts of one meta-batch, in the order of their tasks.

    Attributes:
        rollouts: one of each task.
        actors: how many actors are up.
        counts: what became of the work.
    """

    rollouts: tuple[Rollout, ...]
    actors: int
    counts: WorkCounts


class RolloutPool:
    """Rollout actors and the work queue over them.

    Args:
        settings: of the run.
        namespace: Ray namespace of the actors' names.
        capacity: what the cluster has room for.
        settle: notes a failure; may raise to end the run.
        on_event: told of what is waited for.
        check_stop: called at least every half second while waiting; may raise to abandon the wait.
    """

    def __init__(
        self,
        settings: Settings,
        namespace: str,
        capacity: Capacity,
        *,
        settle: Callable[[Observation], None],
        on_event: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._limits = settings.cluster
        self._capacity = capacity
        self._settle, self._on_event, self._check_stop = settle, on_event, check_stop
        self._roster = Roster(settings, namespace, capacity, settle=settle, on_event=on_event)
        self._agenda: Agenda[Rollout] = Agenda()
        self._usual: deque[float] = deque(maxlen=64)
        self._told_at = self._finished_at = time.monotonic()
        self._tend_next = 0.0

    def wait_until_ready(self) -> tuple[Place, ...]:
        """Start the actors and wait for the first answer of each that there is room for.

        Returns:
            Where they run. Those that wait for an autoscaler's nodes join later.

        Raises:
            ResourceError: fewer than ``cluster.min_rollout_actors`` were up within
                ``cluster.start_timeout_s``.
        """
        timeout, least = self._limits.start_timeout_s, self._limits.min_rollout_actors
        began = self._told_at = time.monotonic()
        self._roster.follow_cluster()
        while self._roster.settled < max(least, self._expected()):
            self._check_stop()
            waited = time.monotonic() - began
            if waited > timeout:
                break
            self._tell_start(waited)
            for member, _ in self._wait():
                self._roster.greet(member)
            self._roster.follow_cluster()
        ready = self._roster.places
        if len(ready) >= least:
            return tuple(ready)
        raise ResourceError(
            f"{self._pending()} did not start within {timeout:.0f} s "
            f"(cluster.start_timeout_s); {len(ready)} of at least {least} rollout actors are up, "
            f"{describe_free()}: free some, or lower cluster.min_rollout_actors"
        )

    def collect(
        self,
        parameters: ray.ObjectRef[Any],
        assignments: Sequence[Assignment],
        before: Collected | None = None,
    ) -> Collected:
        """Have every assignment rolled out with ``parameters``, by whoever is free.

        Args:
            parameters: a reference to them.
            assignments: one of each task.
            before: what was collected of the same assignments, and may have been lost: only what
                lies on nodes that are gone is collected again, or all where none is gone.

        Raises:
            TrainingFailed: a piece of work raised or failed too often, a budget for faults is
                spent, or no actor was left for ``cluster.empty_timeout_s``.
        """
        return self.finish(self.begin(parameters, assignments, before))

    def begin(
        self,
        parameters: ray.ObjectRef[Any],
        assignments: Sequence[Assignment],
        before: Collected | None = None,
    ) -> Batch[Rollout]:
        """Take up a meta-batch, beside those under way: arguments as for :meth:`collect`.

        Work is handed out in :meth:`step` and :meth:`finish`, of earlier iterations first.
        """
        kept = self._still_there(before) if before else {}
        counts = WorkCounts()
        if before:
            again = len(assignments) - len(kept)
            counts = before.counts + WorkCounts(used=-again, lost=again)
        batch = Batch(assignments, kept, parameters=parameters, counts=counts)
        self._agenda.begin(batch)
        self._finished_at = time.monotonic()
        return batch

    def finish(
        self, batch: Batch[Rollout], hand_over: Callable[[Sequence[Rollout]], None] | None = None
    ) -> Collected:
        """See a meta-batch that was begun to its end; raises as :meth:`collect`.

        Args:
            batch: the meta-batch.
            hand_over: given what is done of it, each task once, while some actors have nothing left
                to do and others are still at work: their cores are free meanwhile.
        """
        handed = 0
        try:
            while not batch.finished:
                self._check_stop()
                self.step()
                if hand_over is not None and self._waits_for_the_last(batch):
                    new = batch.done_since(handed)
                    if len(new) >= batch.left:  # half of it, half of the rest: a few times in all
                        handed += len(new)
                        hand_over(new)
            return Collected(batch.results(), len(self._roster.at_work), batch.counts)
        finally:
            self._agenda.end(batch)

    def step(self, others: Sequence[ray.ObjectRef[Any]] = ()) -> None:
        """Hand out work, wait for what comes next, half a second at most, and act on it.

        Args:
            others: one of these that is there ends the wait as well.

        Raises:
            TrainingFailed: as :meth:`collect`.
        """
        tending = time.monotonic() >= self._tend_next
        if tending:
            self._tend_next = time.monotonic() + TEND_EVERY_S
            self._roster.follow_cluster()
        if not self._agenda.finished:
            self._roster.insist_on_somebody()
        self._dispatch()
        for member, ref in self._wait(others):
            self._handle(member, ref)
        if tending:  # only now: what was late may just have come
            self._enforce_deadlines()

    @property
    def in_flight(self) -> int:
        """Pieces of work that actors have and have not answered: late ones, between batches."""
        return sum(len(member.work) for member in self._roster)

    def how_lost(self, collected: Collected) -> Failure:
        """What it is to be called that rollouts were lost: their nodes may have been announced."""
        living, nodes = self._capacity.living(), {one.node_id for one in collected.rollouts}
        announced = {node for node in nodes if self._capacity.announced(node)}
        if announced and not nodes - announced - living:
            return Failure.PREEMPTED
        return Failure.ROLLOUTS_LOST

    def close(self) -> None:
        """End all actors."""
        self._roster.close()

    def _waits_for_the_last(self, batch: Batch[Rollout]) -> bool:
        """Whether somebody is idle since nobody has work to give, and others are not done."""
        idle = any(not member.work for member in self._roster.at_work)
        return idle and not batch.waiting and not batch.finished

    def _expected(self) -> int:
        """How many of the actors there is room for; the others wait for nodes."""
        return min(len(self._roster), self._capacity.room())

    def _pending(self) -> str:
        """The actors that have not started, for people."""
        names = [member.name for member in self._roster.starting]
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return (", ".join(names[:_NAMES]) or "rollout actors") + more

    def _tell_start(self, waited_s: float) -> None:
        if time.monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = time.monotonic()
            limit = self._limits.start_timeout_s
            self._on_event(
                f"waiting for {self._pending()} to start, for {waited_s:.0f} s of {limit:.0f} s "
                f"(cluster.start_timeout_s); {describe_free()}"
            )

    def _still_there(self, before: Collected) -> dict[int, Rollout]:
        living = self._capacity.living()
        kept = {i: one for i, one in enumerate(before.rollouts) if one.node_id in living}
        return kept if len(kept) < len(before.rollouts) else {}

    def _dispatch(self) -> None:
        """Give free actors work; a second piece ahead, while there is plenty, hides the way."""
        there = self._roster.at_work
        for batch in self._agenda:
            for depth in (1, 2) if batch.waiting else ():
                for member in there:
                    plenty = depth == 1 or batch.waiting > len(there)
                    if len(member.work) < depth and batch.waiting and plenty:
                        member.give(batch.parameters, batch.hand_out())
            self._duplicate(batch, [member for member in there if not member.work])
            if batch.waiting:  # what is left of it waits for the next who is free; so does the rest
                return

    def _duplicate(self, batch: Batch[Rollout], idle: list[Member]) -> None:
        """Give idle actors what others are slow at."""
        factor = self._limits.straggler_factor
        if factor is None or batch.waiting or not self._usual:
            return
        slow = max(POLL_S, factor * median(self._usual))
        late = [member for member in self._roster if member.head_age() > slow] if idle else []
        for straggler in sorted(late, key=Member.head_age, reverse=True):
            for item in straggler.work:
                if idle and batch.may_duplicate(item.assignment):
                    idle.pop().give(batch.parameters, item.assignment)
                    batch.duplicate(item.assignment)

    def _wait(
        self, others: Sequence[ray.ObjectRef[Any]] = ()
    ) -> list[tuple[Member, ray.ObjectRef[Any]]]:
        """What has been answered: receipts, and first words of new actors."""
        waiting: dict[ray.ObjectRef[Any], Member] = {}
        for member in self._roster:
            if member.ready is not None:
                waiting[member.ready] = member
            for item in member.work:
                waiting[item.receipt] = member
        if not waiting and not others:
            time.sleep(POLL_S)  # nobody is there who could answer
            return []
        answered, pending = ray.wait([*waiting, *others], timeout=POLL_S)
        if answered and pending:  # of a thousand actors many have answered by now: one look for all
            answered += ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        return [(waiting[ref], ref) for ref in answered if ref in waiting]

    def _handle(self, member: Member, ref: ray.ObjectRef[Any]) -> None:
        if member not in self._roster:
            return  # it was let go for what it answered just before: this piece is lost, too
        if ref == member.ready:
            self._tend_next = 0.0
            self._roster.greet(member)
            return
        item = next(item for item in member.work if item.receipt == ref)
        try:
            receipt: Receipt = ray.get(ref, timeout=FETCH_S)
        except RayTaskError as error:
            # What Ray raises around the work, as of a full object store, need not come again.
            own = not isinstance(error.cause, RayError)
            failure = Failure.WORK_RAISED if own else Failure.DATA_LOST
            self._fail(member, failure, reason(error), item)
        except RayError as error:
            self._fail(member, self._roster.how_it_died(member, error), reason(error))
        else:
            self._usual.append(member.answered(item))
            self._finished_at = time.monotonic()
            rollout = Rollout(item.rollouts, receipt.timings, receipt.node_id)
            self._agenda.finish(item.assignment, rollout)

    def _enforce_deadlines(self) -> None:
        limits = self._limits
        soonest = min(limits.stall_s, limits.task_timeout_s)
        for member in self._roster:
            if member.head_age() <= soonest:
                continue
            needed = bool(member.work) and self._agenda.needs(member.work[0].assignment)
            limit = limits.task_timeout_s if needed else soonest
            if member.head_age() > limit:
                key = "task_timeout_s" if limit == limits.task_timeout_s else "stall_s"
                self._fail(member, Failure.TIMED_OUT, f"cluster.{key} is {limit:.0f}")
        self._roster.give_up_late_starts()
        busy = [member for member in self._roster if member.work]
        if busy and time.monotonic() - self._finished_at > limits.stall_s:
            self._on_stall(busy)

    def _on_stall(self, busy: list[Member]) -> None:
        """Nothing has finished for long: tell who is at what, and replace those that hang."""
        waited = time.monotonic() - self._finished_at
        self._finished_at = time.monotonic()
        names = {f"{member.name} on {member.place}": member.actor for member in busy}
        self._on_event(
            f"nothing has finished for {waited:.0f} s (cluster.stall_s):\n"
            f"{describe_activity(names)}"
        )
        if not self._usual:  # how long the work takes is not known yet: task_timeout_s decides
            return
        hanging = max(self._limits.stall_s, _STALL_FACTOR * median(self._usual))
        for member in busy:
            if member.head_age() > hanging:
                usual = f"usually it takes {median(self._usual):.1f} s"
                self._fail(member, Failure.STALLED, usual)

    def _fail(
        self, member: Member, failure: Failure, error: str, item: InFlight | None = None
    ) -> None:
        """Note and act on a failure; the work at the head of the actor's queue is to blame."""
        blamed = (item or member.work[0]).assignment
        attempts = self._agenda.lose([one.assignment for one in member.work], blamed)
        self._roster.dismiss(member)
        self._roster.doubt(member.node_id)
        self._tend_next = 0.0  # another is to be begun in its place
        if failure is Failure.WORK_RAISED and not self._agenda.needs(blamed):
            return  # of what was done already by another
        self._settle(Observation(failure, str(blamed), member.name, attempts, error))
