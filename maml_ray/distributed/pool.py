"""A queue of work over rollout actors: dispatch, watch, hand out again, replace.

The pool follows the cluster: it has an actor for every CPU that is there, between the least and
the most of the settings. The driver sees receipts; the rollouts stay references.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from maml_ray.config import Settings
from maml_ray.distributed.activity import Place, Receipt
from maml_ray.distributed.batch import Batch, WorkCounts
from maml_ray.distributed.capacity import Capacity
from maml_ray.distributed.demand import demanded_actors, describe_free
from maml_ray.distributed.failures import Failure, FaultLog, Observation, Stop
from maml_ray.distributed.members import InFlight, Member, Recruiter, describe_activity, reason
from maml_ray.errors import ResourceError, TrainingFailed
from maml_ray.rollout import Assignment, RolloutTimings

POLL_S = 0.5
"""Longest single wait: how soon a request to stop is heard."""
FETCH_S = 30.0
"""Deadline for bringing over a small answer that is known to be there."""
TELL_EVERY_S = 10.0
"""Seconds between two lines that say what is waited for."""
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
        actors: how many actors there are.
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
        faults: where failures are noted and decided on.
        on_event: told of every failure that was mended, and of what is waited for.
        check_stop: called at least every half second while waiting; may raise to abandon the wait.
    """

    def __init__(
        self,
        settings: Settings,
        namespace: str,
        *,
        faults: FaultLog,
        on_event: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._cluster = settings.cluster
        self._faults = faults
        self._on_event = on_event
        self._check_stop = check_stop
        self._recruiter = Recruiter(settings, namespace)
        demanded = demanded_actors(settings.cluster, settings.meta_batch.tasks)
        self._capacity = Capacity(settings.cluster, demanded=demanded)
        self._members: list[Member] = []
        self._usual: deque[float] = deque(maxlen=64)
        self._failed_starts = 0
        self._empty_since: float | None = None
        self._told_at = self._finished_at = time.monotonic()

    def wait_until_ready(self) -> tuple[Place, ...]:
        """Start the actors and wait for the first answer of each that there is room for.

        Returns:
            Where they run. Those that wait for an autoscaler's nodes join later.

        Raises:
            ResourceError: fewer than ``cluster.min_rollout_actors`` were up within
                ``cluster.start_timeout_s``.
        """
        timeout, least = self._cluster.start_timeout_s, self._cluster.min_rollout_actors
        began = self._told_at = time.monotonic()
        self._fill_up(self._capacity.wanted())
        while len(ready := self._places()) < max(least, min(len(self._members), self._room())):
            self._check_stop()
            waited = time.monotonic() - began
            if waited > timeout:
                break
            self._tell_start(waited)
            for member, _ in self._wait():
                self._greet(member)
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
        kept = self._still_there(before) if before else {}
        batch: Batch[Rollout] = Batch(assignments, kept)
        self._finished_at = time.monotonic()
        while not batch.finished:
            self._check_stop()
            self._follow_cluster()
            self._dispatch(parameters, batch)
            for member, ref in self._wait():
                self._handle(batch, member, ref)
            self._enforce_deadlines(batch)
        counts = batch.counts
        if before:
            again = len(assignments) - len(kept)
            counts += before.counts + WorkCounts(used=-again, lost=again)
        return Collected(batch.results(), len(self._members), counts)

    @property
    def in_flight(self) -> int:
        """Pieces of work that actors have and have not answered: late ones, between batches."""
        return sum(len(member.work) for member in self._members)

    def close(self) -> None:
        """End all actors."""
        for member in self._members:
            ray.kill(member.actor)
        self._members = []

    def _places(self) -> list[Place]:
        return [member.place for member in self._members if member.place is not None]

    def _room(self) -> int:
        """How many actors there is room for; more of them are asked for as it grows."""
        self._fill_up(self._capacity.wanted())
        return self._capacity.room()

    def _pending(self) -> str:
        """The actors that have not started, for people."""
        names = [member.name for member in self._members if member.ready is not None]
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return (", ".join(names[:_NAMES]) or "rollout actors") + more

    def _tell_start(self, waited_s: float) -> None:
        if time.monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = time.monotonic()
            limit = self._cluster.start_timeout_s
            self._on_event(
                f"waiting for {self._pending()} to start, for {waited_s:.0f} s of {limit:.0f} s "
                f"(cluster.start_timeout_s); {describe_free()}"
            )

    def _still_there(self, before: Collected) -> dict[int, Rollout]:
        living = self._capacity.living()
        kept = {i: one for i, one in enumerate(before.rollouts) if one.node_id in living}
        return kept if len(kept) < len(before.rollouts) else {}

    def _follow_cluster(self) -> None:
        """As many actors as the cluster has room for; a deadline when it has room for none."""
        wanted = self._capacity.wanted()
        surplus = len(self._members) - wanted
        for member in [one for one in reversed(self._members) if one.ready is not None]:
            if surplus > 0:  # it waits for a CPU that is not there any more
                self._dismiss(member)
                surplus -= 1
        self._fill_up(wanted)
        now = time.monotonic()
        if any(member.ready is None for member in self._members):
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self._told_at = now
        else:
            self._wait_for_nodes(now - self._empty_since, wanted)

    def _wait_for_nodes(self, waited_s: float, cpus: int) -> None:
        limit = self._cluster.empty_timeout_s
        told = (
            f"no rollout actor is up: waiting for a node with a free CPU, for {waited_s:.0f} s of "
            f"{limit:.0f} s (cluster.empty_timeout_s); the cluster has room for {cpus}"
        )
        if waited_s > limit:
            raise TrainingFailed(told)
        if time.monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = time.monotonic()
            self._on_event(told)

    def _fill_up(self, wanted: int) -> None:
        while len(self._members) < wanted:
            self._members.append(self._recruiter.recruit(self._members))

    def _dismiss(self, member: Member) -> None:
        ray.kill(member.actor)
        self._members.remove(member)

    def _greet(self, member: Member) -> None:
        """Take a new actor in, if its first answer is one."""
        assert member.ready is not None
        try:
            member.place = ray.get(member.ready, timeout=FETCH_S)
        except RayError as error:
            self._dismiss(member)
            if getattr(error, "actor_init_failed", False):
                raise TrainingFailed(f"{member.name} could not start: {reason(error)}") from None
            self._failed_starts += 1
            self._settle(
                Observation(
                    failure=_how_it_died(error, Failure.START_FAILED),
                    work="the start",
                    actor=member.name,
                    attempts=self._failed_starts,
                    error=reason(error),
                )
            )
        else:
            member.ready = None
            self._failed_starts = 0

    def _dispatch(self, parameters: ray.ObjectRef[Any], batch: Batch[Rollout]) -> None:
        """Give free actors work; a second piece ahead, while there is plenty, hides the way."""
        for depth in (1, 2):
            for member in self._members:
                plenty = depth == 1 or batch.waiting > len(self._members)
                if member.ready is None and len(member.work) < depth and batch.waiting and plenty:
                    member.give(parameters, batch.hand_out())
        factor = self._cluster.straggler_factor
        if factor is None or batch.waiting or not self._usual:
            return
        slow = max(POLL_S, factor * median(self._usual))
        idle = [member for member in self._members if member.ready is None and not member.work]
        for straggler in sorted(self._members, key=Member.head_age, reverse=True):
            for item in straggler.work:
                if idle and straggler.head_age() > slow and batch.may_duplicate(item.assignment):
                    idle.pop().give(parameters, item.assignment)
                    batch.duplicate(item.assignment)

    def _wait(self) -> list[tuple[Member, ray.ObjectRef[Any]]]:
        """What has been answered: receipts, and first words of new actors."""
        waiting: dict[ray.ObjectRef[Any], Member] = {}
        for member in self._members:
            if member.ready is not None:
                waiting[member.ready] = member
            for item in member.work:
                waiting[item.receipt] = member
        if not waiting:
            time.sleep(POLL_S)  # nobody is there who could answer
            return []
        answered, _ = ray.wait(list(waiting), timeout=POLL_S)
        return [(waiting[ref], ref) for ref in answered]

    def _handle(self, batch: Batch[Rollout], member: Member, ref: ray.ObjectRef[Any]) -> None:
        if ref == member.ready:
            self._greet(member)
            return
        item = next((item for item in member.work if item.receipt == ref), None)
        if item is None:  # its actor has been replaced while this answer was under way
            return
        try:
            receipt: Receipt = ray.get(ref, timeout=FETCH_S)
        except RayTaskError as error:
            self._fail(batch, member, Failure.WORK_RAISED, reason(error), item)
        except RayError as error:
            self._fail(batch, member, _how_it_died(error, Failure.ACTOR_DIED), reason(error))
        else:
            self._usual.append(member.answered(item))
            self._finished_at = time.monotonic()
            batch.finish(item.assignment, Rollout(item.rollouts, receipt.timings, receipt.node_id))

    def _enforce_deadlines(self, batch: Batch[Rollout]) -> None:
        limits = self._cluster
        for member in list(self._members):
            needed = bool(member.work) and batch.needs(member.work[0].assignment)
            limit = limits.task_timeout_s if needed else min(limits.stall_s, limits.task_timeout_s)
            if member.head_age() > limit:
                key = "task_timeout_s" if limit == limits.task_timeout_s else "stall_s"
                self._fail(batch, member, Failure.TIMED_OUT, f"cluster.{key} is {limit:.0f}")
            elif (
                member.ready is not None
                and time.monotonic() - member.began > limits.start_timeout_s
            ):
                self._dismiss(member)  # its CPU is taken or gone; another may be had
        busy = [member for member in self._members if member.work]
        if busy and time.monotonic() - self._finished_at > limits.stall_s:
            self._on_stall(batch, busy)

    def _on_stall(self, batch: Batch[Rollout], busy: list[Member]) -> None:
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
        hanging = max(self._cluster.stall_s, _STALL_FACTOR * median(self._usual))
        for member in busy:
            if member in self._members and member.head_age() > hanging:
                usual = f"usually it takes {median(self._usual):.1f} s"
                self._fail(batch, member, Failure.STALLED, usual)

    def _fail(
        self,
        batch: Batch[Rollout],
        member: Member,
        failure: Failure,
        error: str,
        item: InFlight | None = None,
    ) -> None:
        """Decide and act on a failure; the work at the head of the actor's queue is to blame."""
        blamed = (item or member.work[0]).assignment
        attempts = batch.lose([one.assignment for one in member.work], blamed)
        self._dismiss(member)
        self._capacity.look_again()
        if failure is Failure.WORK_RAISED and not batch.needs(blamed):
            return  # of what was done already by another
        self._settle(Observation(failure, str(blamed), member.name, attempts, error))

    def _settle(self, observation: Observation) -> None:
        decision = self._faults.decide(observation)
        if isinstance(decision, Stop):
            raise TrainingFailed(decision.message)
        self._on_event(decision.message)


def _how_it_died(error: RayError, otherwise: Failure) -> Failure:
    preempted = isinstance(error, RayActorError) and error.preempted
    return Failure.PREEMPTED if preempted else otherwise
