"""Call the learner actor from the driver, watch it, and replace it if it dies.

The driver keeps the learner's latest state in its own memory, so neither the learner's death nor
its node's loses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from maml_ray.common.errors import Interrupted, ResourceError, TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.learning.state import LearnerState, UpdateMetrics
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.actor_group import FETCH_TIMEOUT_S, PROGRESS_INTERVAL_S
from maml_ray.runtime.actor_handle import describe_error, describe_heartbeats
from maml_ray.runtime.capacity import ResourcePlan, describe_free_resources
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.learner_process import LearnerFactory, StandbyLearner
from maml_ray.runtime.ray_internals import get_unplaced_actors
from maml_ray.runtime.rollout_pool import POLL_S
from maml_ray.runtime.run_context import RunContext

PollFn = Callable[[Sequence[ray.ObjectRef[Any]]], None]
"""Called while the learner is waited for; returns soon, or once one of the references is ready."""
STOP_GRACE_S = 3.0
"""Seconds that a running update may take to finish after a request to stop."""


class RolloutsLost(Exception):
    """The learner could not fetch some rollouts: the node that held them is gone."""


class LearnerHandle:
    """Start the learner actor, call it, and replace it if it dies.

    With ``cluster.standby_learner`` a second actor is kept ready, which then takes its place.

    Args:
        settings: of the run.
        spec: sizes of the policy.
        plan: whether the learner gets a GPU.
        context: draining nodes, failure handling, messages and stop requests.
        state: the learner's initial or resumed state.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        plan: ResourcePlan,
        context: RunContext,
        state: LearnerState,
    ) -> None:
        self._limits, self._plan = settings.cluster, plan
        self._context = context
        self._state = state
        self._restarts = 0
        self._factory = LearnerFactory(settings, spec, plan, context.namespace)
        self._active = self._factory.start(state)
        attempts = settings.cluster.max_task_attempts
        self._standby = StandbyLearner(self._factory, context, attempts)

    @property
    def state(self) -> LearnerState:
        """The learner's latest state."""
        return self._state

    @property
    def restarts(self) -> int:
        """Number of times the learner has been restarted."""
        return self._restarts

    def wait_until_ready(self, poll_fn: PollFn | None = None) -> str:
        """Wait for the learner to start; restart it if its process or its node dies meanwhile.

        Args:
            poll_fn: called repeatedly until the learner is up; may raise to abandon the wait.

        Returns:
            Description of the learner's device.

        Raises:
            ResourceError: it was not up within ``cluster.start_timeout_s``, or could not start.
            TrainingFailed: it died too often.
        """
        attempts = 0
        while True:
            ref = self._active.description_ref
            self._wait_for_start(ref, poll_fn)
            try:
                description: str = ray.get(ref, timeout=FETCH_TIMEOUT_S)
            except RayError as error:
                message = describe_error(error)
                own = getattr(error, "actor_init_failed", False)  # a restart would fail likewise
                if own or not isinstance(error, RayActorError):
                    raise ResourceError(f"the learner could not start: {message}") from None
                attempts += 1
                failure = self._classify_death(error, Failure.START_FAILED)
                self._restart(failure, "the start", attempts, message)
            else:
                return description

    def _wait_for_start(self, ref: ray.ObjectRef[Any], poll_fn: PollFn | None) -> None:
        timeout = self._limits.start_timeout_s
        started_at = reported_at = time.monotonic()
        while not _all_ready([ref], poll_fn):
            self._context.check_stop()
            self._context.on_status("starting the learner")
            now = time.monotonic()
            if now - started_at > timeout:
                gpu = ": its GPU may be taken by another job" if self._plan.learner_gpus else ""
                raise ResourceError(
                    f"the learner did not start within {timeout:.0f} s (cluster.start_timeout_s); "
                    f"{describe_free_resources()}{gpu}"
                )
            if now - reported_at > PROGRESS_INTERVAL_S:
                reported_at = now
                # It requests no CPU: only a GPU may be what it waits for.
                if self._plan.learner_gpus and self._active.name in get_unplaced_actors():
                    self._context.on_event(
                        f"waiting for a free GPU for the learner ({now - started_at:.0f} s of "
                        f"{timeout:.0f} s, cluster.start_timeout_s); {describe_free_resources()}"
                    )

    def prefetch(self, rollouts: Sequence[ray.ObjectRef[Any]]) -> None:
        """Send some of the next update's rollouts in advance, without waiting.

        Errors surface in :meth:`update`, which receives the same rollouts again.
        """
        prefetch = self._active.actor.prefetch.options(name="prefetch rollouts", num_returns=0)
        prefetch.remote(*rollouts)

    def update(
        self, rollouts: Sequence[ray.ObjectRef[Any]], poll_fn: PollFn | None = None
    ) -> UpdateMetrics:
        """Do one meta-update; repeat it on a new learner if the current one dies.

        The rollouts go from the actors' nodes to the learner's; the driver never holds them.

        Args:
            rollouts: references to one meta-batch's TaskRollouts.
            poll_fn: called repeatedly until the update is done; may raise to abandon it.

        Raises:
            RolloutsLost: some rollouts no longer exist.
            TrainingFailed: the update raised, or failed too often.
            Interrupted: a stop was requested, and the update did not end soon after.
        """
        # Only here: after a death, starting another standby must not delay the repeated update.
        if self._limits.standby_learner:
            self._standby.maintain(self._state, self._active)
        work, attempts = f"the meta-update of version {self.state.version}", 0
        while True:
            update = self._active.actor.update.options(name="meta-update", num_returns=2)
            metrics, state = update.remote(*rollouts)
            try:
                failed = self._wait_for_update([metrics, state], poll_fn)
                if failed is None:
                    result: UpdateMetrics = ray.get(metrics, timeout=FETCH_TIMEOUT_S)
                    self._state = ray.get(state, timeout=FETCH_TIMEOUT_S)
                    return result
            except RayTaskError as error:
                message = describe_error(error)
                if isinstance(error, ObjectLostError) or isinstance(error.cause, ObjectLostError):
                    raise RolloutsLost(message) from None
                if not isinstance(error.cause, RayError):
                    raise TrainingFailed(f"{work} failed: {message}") from None
                failed = (Failure.DATA_LOST, message)
            except RayError as error:
                failed = self._classify_death(error, Failure.ACTOR_DIED), describe_error(error)
            attempts += 1
            self._restart(failed[0], work, attempts, failed[1])

    def close(self) -> None:
        """Kill the learner and its standby."""
        ray.kill(self._active.actor)
        self._standby.close()

    def _restart(self, failure: Failure, work: str, attempts: int, message: str) -> None:
        """Replace the learner by the standby or a new one, if the fault budgets allow it."""
        report = FailureReport(failure, work, self._active.name, attempts, message)
        self._context.handle_failure(report)
        ray.kill(self._active.actor)
        self._restarts += 1
        standby = self._standby.take()
        if standby is None:
            self._active = self._factory.start(self._state)
            return
        self._context.on_event(f"{standby.name}, the standby learner, takes over")
        standby.actor.load.options(num_returns=0).remote(self._state)  # precedes all later calls
        self._active = standby

    def _classify_death(self, error: RayError, default: Failure) -> Failure:
        return self._active.classify_death(error, default, self._context.capacity)

    def _wait_for_update(
        self, refs: Sequence[ray.ObjectRef[Any]], poll_fn: PollFn | None
    ) -> tuple[Failure, str] | None:
        """Wait for an update; return None once it is done, or why it is abandoned."""
        limits, started_at = self._limits, time.monotonic()
        reported_at, stop_by = started_at, None
        while not _all_ready(refs, poll_fn):
            now = time.monotonic()
            self._context.capacity.refresh()  # the learner's node may start to drain meanwhile
            try:
                self._context.check_stop()
            except Interrupted:
                stop_by = stop_by or now + STOP_GRACE_S
                if now > stop_by:
                    raise
            if now - reported_at > limits.stall_s:
                reported_at = now
                self._context.on_event(
                    f"the meta-update has taken {now - started_at:.0f} s so far:\n"
                    f"{describe_heartbeats({self._active.name: self._active.actor})}"
                )
            if now - started_at > limits.task_timeout_s:
                return Failure.TIMED_OUT, f"cluster.task_timeout_s is {limits.task_timeout_s:.0f}"
        return None


def _all_ready(refs: Sequence[ray.ObjectRef[Any]], poll_fn: PollFn | None) -> bool:
    """Return whether all references are ready, after waiting ``POLL_S`` or calling ``poll_fn``."""
    if poll_fn is not None:
        poll_fn(refs)
    timeout = POLL_S if poll_fn is None else 0
    return not ray.wait(list(refs), num_returns=len(refs), timeout=timeout)[1]
