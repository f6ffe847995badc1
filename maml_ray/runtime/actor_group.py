"""The rollout actors that there are: as many as the cluster has room for, begun and let go.

Who stands on the roster, and whether it may be given work; what the work is, the pool knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import ray
from ray.exceptions import RayActorError, RayError

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.runtime.actor_handle import Member, Recruiter, reason
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, Observation
from maml_ray.runtime.heartbeat import Place

FETCH_S = 30.0
"""Deadline for bringing over a small answer that is known to be there."""
TELL_EVERY_S = 10.0
"""Seconds between two lines that say what is waited for."""


class Roster:
    """Rollout actors by place; it follows the cluster.

    Args:
        settings: of the run.
        namespace: Ray namespace of the actors' names.
        capacity: what the cluster has room for.
        settle: notes a failure; may raise to end the run.
        on_event: told of what is waited for.
    """

    def __init__(
        self,
        settings: Settings,
        namespace: str,
        capacity: Capacity,
        *,
        settle: Callable[[Observation], None],
        on_event: Callable[[str], None],
    ) -> None:
        self._limits = settings.cluster
        self._capacity = capacity
        self._settle, self._on_event = settle, on_event
        self._recruiter = Recruiter(settings, namespace)
        self._members: list[Member] = []
        self._failed_starts = 0
        self._start_failed_at = float("-inf")
        self._empty_since: float | None = None
        self._told_at = time.monotonic()

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members))  # some may leave meanwhile

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: Member) -> bool:
        return member in self._members

    @property
    def at_work(self) -> list[Member]:
        """Those that may be given work: on nodes that stay, as long as anybody is up there."""
        up = [member for member in self._members if member.ready is None]
        if not self._capacity.any_announced:
            return up
        return [member for member in up if self._stays(member)] or up

    @property
    def settled(self) -> int:
        """How many are up on nodes that stay."""
        return sum(member.ready is None and self._stays(member) for member in self._members)

    @property
    def places(self) -> list[Place]:
        """Where those run that may be given work."""
        return [member.place for member in self.at_work if member.place is not None]

    @property
    def starting(self) -> list[Member]:
        """Those from which the answer is still to come that they are up."""
        return [member for member in self._members if member.ready is not None]

    def follow_cluster(self) -> None:
        """As many actors as the cluster has room for.

        Those on a node that is to go leave it when they have done what they have, and others are up
        elsewhere: a node that nobody works on may go without a loss.
        """
        wanted, at_work = self._capacity.wanted(), set(self.at_work)
        for member in self:
            if member.ready is None and not member.work and member not in at_work:
                self.dismiss(member)
                self._settle(Observation(Failure.PREEMPTED, "", member.name, 0, "it was idle"))
        missing = wanted - sum(map(self._stays, self._members))
        for member in reversed(self.starting):
            if missing < 0:  # it waits for a CPU that is not there any more
                self.dismiss(member)
                missing += 1
        for _ in range(missing):
            self._members.append(self._recruiter.recruit(self._members))

    def insist_on_somebody(self) -> None:
        """A deadline, and a word now and then, for as long as no actor is up.

        Raises:
            TrainingFailed: none was for ``cluster.empty_timeout_s``.
        """
        now = time.monotonic()
        if any(member.ready is None for member in self._members):
            self._empty_since = None
            return
        if self._empty_since is None:
            self._empty_since = self._told_at = now
        waited, limit = now - self._empty_since, self._limits.empty_timeout_s
        told = (
            f"no rollout actor is up: waiting for a node with a free CPU, for {waited:.0f} s of "
            f"{limit:.0f} s (cluster.empty_timeout_s); the cluster has room for "
            f"{self._capacity.room()}"
        )
        if waited > limit:
            raise TrainingFailed(told)
        if now - self._told_at > TELL_EVERY_S:
            self._told_at = now
            self._on_event(told)

    def greet(self, member: Member) -> None:
        """Take an actor in whose answer is there, if it is a good one.

        Raises:
            TrainingFailed: actors of this run cannot start, or a budget is spent.
        """
        assert member.ready is not None
        try:
            member.place = ray.get(member.ready, timeout=FETCH_S)
        except RayError as error:
            self.dismiss(member)
            if getattr(error, "actor_init_failed", False):
                raise TrainingFailed(f"{member.name} could not start: {reason(error)}") from None
            self._settle(self._seen_of(member, error))
        else:
            member.ready = None
            self._failed_starts = 0

    def give_up_late_starts(self) -> None:
        """Let those go that do not answer in time: a CPU is taken or gone, another may be had."""
        now = time.monotonic()
        for member in self.starting:
            if now - member.began > self._limits.start_timeout_s:
                self.dismiss(member)

    def dismiss(self, member: Member) -> None:
        """End an actor; what it was at has been seen to."""
        ray.kill(member.actor)
        self._members.remove(member)

    def doubt(self, node_id: str | None) -> None:
        """An actor has died on this node: its idle ones must show that they are alive.

        Otherwise work would go from one dead actor of a lost node to the next, and be blamed.
        """
        self._capacity.look_again()
        for member in self._members:
            if member.ready is None and not member.work and member.node_id == node_id:
                member.ask_again()

    def how_it_died(self, member: Member, error: RayError) -> Failure:
        """Ray itself speaks of a pre-emption only where the announced moment had passed."""
        told = isinstance(error, RayActorError) and error.preempted
        announced = told or self._capacity.announced(member.node_id)
        return Failure.PREEMPTED if announced else Failure.ACTOR_DIED

    def close(self) -> None:
        """End all actors."""
        for member in self:
            self.dismiss(member)

    def _stays(self, member: Member) -> bool:
        return not self._capacity.announced(member.node_id)

    def _seen_of(self, member: Member, error: RayError) -> Observation:
        failure = self.how_it_died(member, error)
        if failure is Failure.PREEMPTED or member.place is not None:
            return Observation(failure, "", member.name, 0, reason(error))
        # Several that were begun together and died together are one failure in a row: a node's.
        if member.began > self._start_failed_at:
            self._failed_starts += 1
        self._start_failed_at = time.monotonic()
        attempts = self._failed_starts
        return Observation(Failure.START_FAILED, "the start", member.name, attempts, reason(error))
