"""Start the learner actor from the driver, watch it, and restart it if it dies.

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
from maml_ray.runtime.actors import ActorLocation, LearnerActor, as_actor
from maml_ray.runtime.capacity import ResourcePlan, describe_free_resources
from maml_ray.runtime.fault_policy import REPLACEMENT, Failure, FailureReport
from maml_ray.runtime.ray_internals import get_unplaced_actors
from maml_ray.runtime.rollout_pool import POLL_S
from maml_ray.runtime.run_context import RunContext

MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Makes the learner's process keep memory that it frees (glibc, mallopt(3)): getting some tens of
thousands of pages again in each update, zeroed by the kernel, takes up to a third of its time."""
PollFn = Callable[[Sequence[ray.ObjectRef[Any]]], None]
"""Called while the learner is waited for; returns soon, or once one of the references is ready."""
STOP_GRACE_S = 3.0
"""Seconds that a running update may take to finish after a request to stop."""


class RolloutsLost(Exception):
    """The learner could not fetch some rollouts: the node that held them is gone."""


class LearnerHandle:
    """Start the learner actor, call it, and replace it if it dies.

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
        self._settings, self._spec, self._plan = settings, spec, plan
        self._context = context
        self._state = state
        self._generation = 0
        self._actor: Any = self._start()

    @property
    def state(self) -> LearnerState:
        """The learner's latest state."""
        return self._state

    @property
    def restarts(self) -> int:
        """Number of times the learner has been restarted."""
        return self._generation

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
            ref = self._actor.describe.remote()
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
                self._restart(FailureReport(failure, "the start", self._name(), attempts, message))
            else:
                return description

    def _wait_for_start(self, ref: ray.ObjectRef[Any], poll_fn: PollFn | None) -> None:
        timeout = self._settings.cluster.start_timeout_s
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
                if self._plan.learner_gpus and self._name() in get_unplaced_actors():
                    self._context.on_event(
                        f"waiting for a free GPU for the learner ({now - started_at:.0f} s of "
                        f"{timeout:.0f} s, cluster.start_timeout_s); {describe_free_resources()}"
                    )

    def prefetch(self, rollouts: Sequence[ray.ObjectRef[Any]]) -> None:
        """Send some of the next update's rollouts in advance, without waiting.

        Errors surface in :meth:`update`, which receives the same rollouts again.
        """
        self._actor.prefetch.options(name="prefetch rollouts", num_returns=0).remote(*rollouts)

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
        work, attempts = f"the meta-update of version {self.state.version}", 0
        while True:
            metrics, state = self._actor.update.options(name="meta-update", num_returns=2).remote(
                *rollouts
            )
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
            self._restart(FailureReport(failed[0], work, self._name(), attempts, failed[1]))

    def close(self) -> None:
        """Kill the learner."""
        ray.kill(self._actor)

    def _start(self) -> Any:
        actor = (
            as_actor(LearnerActor)
            .options(
                name=self._name(),
                namespace=self._context.namespace,
                num_cpus=0,
                num_gpus=self._plan.learner_gpus,
                runtime_env={"env_vars": MALLOC_ENV},
            )
            .remote(
                self._settings,
                self._spec,
                self._plan.learner_device,
                self._settings.cluster.learner_threads,
                self._state,
            )
        )
        self._location_ref = actor.location.remote()  # requested now, while the actor is alive
        return actor

    def _name(self) -> str:
        return "learner" + (f"{REPLACEMENT}{self._generation}" if self._generation else "")

    def _restart(self, report: FailureReport) -> None:
        """Start a new learner from the latest state, if the fault budgets allow it."""
        self._context.handle_failure(report)
        ray.kill(self._actor)
        self._generation += 1
        self._actor = self._start()

    def _classify_death(self, error: RayError, default: Failure) -> Failure:
        preempted = isinstance(error, RayActorError) and error.preempted
        return Failure.PREEMPTED if preempted or self._is_draining() else default

    def _is_draining(self) -> bool:
        """Return whether the learner's node is being drained, or was before it went away."""
        try:
            location: ActorLocation = ray.get(self._location_ref, timeout=0)
        except RayError:  # the learner never came up
            return False
        return self._context.capacity.is_draining(location.node_id)

    def _wait_for_update(
        self, refs: Sequence[ray.ObjectRef[Any]], poll_fn: PollFn | None
    ) -> tuple[Failure, str] | None:
        """Wait for an update; return None once it is done, or why it is abandoned."""
        limits, started_at = self._settings.cluster, time.monotonic()
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
                    f"{describe_heartbeats({self._name(): self._actor})}"
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
