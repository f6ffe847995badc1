"""Keep one rollout actor per available CPU as the cluster changes.

Which actors exist and may be given work is decided here; the work itself belongs to the pool.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import ray
from ray.exceptions import RayActorError, RayError

from maml_ray.common.errors import TrainingFailed, UserCodeFailed, UserError
from maml_ray.config.settings import Settings
from maml_ray.runtime.actor_handle import ActorFactory, ActorHandle, describe_error
from maml_ray.runtime.actors import ActorLocation
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.run_context import RunContext

FETCH_TIMEOUT_S = 30.0
"""Deadline in seconds for fetching a small result that is known to exist."""
PROGRESS_INTERVAL_S = 10.0
"""Seconds between two messages about a long wait."""


class ActorGroup:
    """Keep as many rollout actors as the cluster has room for.

    Actors start asynchronously. An actor is *available* once its first reply has arrived and its
    node is not draining.

    Args:
        settings: of the run.
        context: capacity of the cluster, failure handling and messages.
    """

    def __init__(self, settings: Settings, context: RunContext) -> None:
        self._limits = settings.cluster
        self._context, self._capacity = context, context.capacity
        self._factory = ActorFactory(settings, context)
        self._handles: list[ActorHandle] = []
        self._failed_starts = 0
        self._start_failed_at = float("-inf")
        self._empty_since: float | None = None
        self._reported_at = time.monotonic()

    def __iter__(self) -> Iterator[ActorHandle]:
        return iter(tuple(self._handles))  # a copy: handles may be removed during the iteration

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, handle: ActorHandle) -> bool:
        return handle in self._handles

    @property
    def available(self) -> list[ActorHandle]:
        """Actors that may be given work: those on draining nodes only if there are no others."""
        ready = [handle for handle in self._handles if handle.is_ready]
        if not self._capacity.has_drained_nodes:
            return ready
        return [handle for handle in ready if self._is_staying(handle)] or ready

    @property
    def num_ready(self) -> int:
        """Number of actors that are up, without those on draining nodes."""
        return sum(handle.is_ready and self._is_staying(handle) for handle in self._handles)

    @property
    def locations(self) -> list[ActorLocation]:
        """Where the available actors run."""
        return [handle.location for handle in self.available if handle.location is not None]

    @property
    def starting(self) -> list[ActorHandle]:
        """Actors whose first reply, or whose reply to a ping, is pending."""
        return [handle for handle in self._handles if not handle.is_ready]

    def scale_to_cluster(self) -> None:
        """Start or stop actors so that their number matches the cluster's capacity.

        An actor on a draining node is stopped once it is idle and others are available, so that the
        node can go away without loss.
        """
        target, available = self._capacity.target_actors(), set(self.available)
        for handle in self:
            if handle.is_ready and not handle.work and handle not in available:
                self.remove(handle)
                report = FailureReport(Failure.PREEMPTED, "", handle.name, 0, "it was idle")
                self._context.handle_failure(report)
        missing = target - sum(map(self._is_staying, self._handles))
        for handle in reversed(self.starting):
            if missing < 0:  # it waits for a CPU that no longer exists
                self.remove(handle)
                missing += 1
        for _ in range(missing):
            self._handles.append(self._factory.start(self._handles))

    def require_any_alive(self) -> None:
        """Report periodically that no actor is up, and give up after a deadline.

        Raises:
            TrainingFailed: no actor has been up for ``cluster.empty_timeout_s``.
        """
        now = time.monotonic()
        if any(handle.is_ready for handle in self._handles):
            self._empty_since = None
            return
        if self._empty_since is None:
            self._empty_since = self._reported_at = now
        waited, limit = now - self._empty_since, self._limits.empty_timeout_s
        message = (
            f"no rollout actor is up: waiting for a node with a free CPU ({waited:.0f} s of "
            f"{limit:.0f} s, cluster.empty_timeout_s); the cluster has room for "
            f"{self._capacity.num_slots()}"
        )
        if waited > limit:
            raise TrainingFailed(message)
        if now - self._reported_at > PROGRESS_INTERVAL_S:
            self._reported_at = now
            self._context.on_event(message)

    def on_ready(self, handle: ActorHandle) -> None:
        """Mark an actor as ready after its reply, or handle the failure of its start.

        Raises:
            TrainingFailed: actors of this run cannot start, or a fault budget is spent;
                :class:`UserCodeFailed` if the user's code raises there, not where the run started.
        """
        assert handle.ready_ref is not None
        try:
            handle.location = ray.get(handle.ready_ref, timeout=FETCH_TIMEOUT_S)
        except RayError as error:
            self.remove(handle)
            if isinstance(getattr(error, "cause", None), UserError):
                raise UserCodeFailed(
                    f"{handle.name} could not start: {describe_error(error)}; where the run was "
                    "started it works: install the same code on every node, or let maml-ray "
                    "submit --working-dir upload it"
                ) from None
            if getattr(error, "actor_init_failed", False):
                message = f"{handle.name} could not start: {describe_error(error)}"
                raise TrainingFailed(message) from None
            self._context.handle_failure(self._report_of(handle, error))
        else:
            handle.ready_ref = None
            self._failed_starts = 0

    def stop_late_starts(self) -> None:
        """Stop actors that did not start in time: their CPU is taken or gone; try another."""
        now = time.monotonic()
        for handle in self.starting:
            if now - handle.pinged_at > self._limits.start_timeout_s:
                self.remove(handle)

    def remove(self, handle: ActorHandle) -> None:
        """Kill an actor; the caller has requeued its work."""
        ray.kill(handle.actor)
        self._handles.remove(handle)

    def recheck_node(self, node_id: str | None) -> None:
        """Ping the idle actors of a node on which another actor died, before giving them work.

        Otherwise work would go from one dead actor of a lost node to the next, and be blamed.
        """
        self._capacity.invalidate()
        for handle in self._handles:
            if handle.is_ready and not handle.work and handle.node_id == node_id:
                handle.ping()

    def classify_death(self, handle: ActorHandle, error: RayError) -> Failure:
        """Return whether an actor's death is a preemption.

        Ray itself reports a preemption only after the announced deadline has passed.
        """
        preempted = isinstance(error, RayActorError) and error.preempted
        if preempted or self._capacity.is_draining(handle.node_id):
            return Failure.PREEMPTED
        return Failure.ACTOR_DIED

    def close(self) -> None:
        """Kill all actors."""
        for handle in self:
            self.remove(handle)

    def _is_staying(self, handle: ActorHandle) -> bool:
        return not self._capacity.is_draining(handle.node_id)

    def _report_of(self, handle: ActorHandle, error: RayError) -> FailureReport:
        failure, message = self.classify_death(handle, error), describe_error(error)
        if failure is Failure.PREEMPTED or handle.location is not None:
            return FailureReport(failure, "", handle.name, 0, message)
        # Actors that started together and died together count as one failed start: their node's.
        if handle.pinged_at > self._start_failed_at:
            self._failed_starts += 1
        self._start_failed_at = time.monotonic()
        attempts = self._failed_starts
        return FailureReport(Failure.START_FAILED, "the start", handle.name, attempts, message)
