"""The driver's side of the learner actor: every wait has a deadline and says what it is for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from maml_ray.config import Settings
from maml_ray.distributed.actors import LearnerActor
from maml_ray.distributed.cluster import ResourcePlan
from maml_ray.distributed.pool import FETCH_S, POLL_S, reason
from maml_ray.errors import ResourceError, TrainingFailed
from maml_ray.learner import LearnerState, UpdateMetrics
from maml_ray.policy import PolicySpec

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads that wait give up their core: spinning ones make an update several times longer
as soon as anything else wants it (0.45 s against 1.2 to 1.7 s with one core busy)."""


class LearnerClient:
    """Starts the learner actor and speaks to it.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        plan: whether the learner takes a GPU.
        namespace: Ray namespace of the actor's name.
        check_stop: called while waiting for the start; may raise to abandon it.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        plan: ResourcePlan,
        namespace: str,
        *,
        check_stop: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._check_stop = check_stop
        self._actor: Any = (
            ray.remote(LearnerActor)
            .options(
                name="learner",
                namespace=namespace,
                num_cpus=0,
                num_gpus=plan.learner_gpus,
                runtime_env={"env_vars": PATIENT_THREADS},
            )
            .remote(settings, spec, plan.learner_device, settings.cluster.learner_threads)
        )

    def wait_until_ready(self) -> str:
        """Wait for the learner; where it computes, in words.

        Raises:
            ResourceError: it was not up within ``cluster.start_timeout_s``, or could not start.
        """
        timeout = self._settings.cluster.start_timeout_s
        ref, deadline = self._actor.describe.remote(), time.monotonic() + timeout
        while not ray.wait([ref], timeout=POLL_S)[0]:
            self._check_stop()
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the learner did not start within {timeout:.0f} s (cluster.start_timeout_s): "
                    "its GPU may be taken by another job"
                )
        try:
            description: str = ray.get(ref, timeout=FETCH_S)
        except RayError as error:
            raise ResourceError(f"the learner could not start: {reason(error)}") from None
        return description

    def load(self, state: LearnerState) -> None:
        """Have the learner go on from a checkpointed state."""
        self._get(self._actor.load.remote(state), "loading a checkpoint")

    def publish(self) -> ray.ObjectRef[Any]:
        """The current parameters, as a reference that the driver owns."""
        ref: ray.ObjectRef[Any] = self._actor.publish.remote()
        return ref

    def update(
        self, rollouts: Sequence[ray.ObjectRef[Any]]
    ) -> tuple[UpdateMetrics, ray.ObjectRef[Any]]:
        """One meta-update; its figures, and the new parameters as a reference.

        The rollouts go from the actors' nodes to the learner's; the driver never holds them.
        """
        metrics, parameters = self._actor.update.options(name="meta-update", num_returns=2).remote(
            *rollouts
        )
        result: UpdateMetrics = self._get(metrics, "the meta-update")
        return result, parameters

    def state(self) -> LearnerState:
        """What a checkpoint holds of the learner."""
        result: LearnerState = self._get(self._actor.state.remote(), "the learner's state")
        return result

    def close(self) -> None:
        """End the learner."""
        ray.kill(self._actor)

    def _get(self, ref: ray.ObjectRef[Any], what: str) -> Any:
        """Wait without heeding a request to stop: what the learner has begun, it finishes."""
        timeout = self._settings.cluster.task_timeout_s
        try:
            return ray.get(ref, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise TrainingFailed(
                f"{what} took longer than {timeout:.0f} s (cluster.task_timeout_s)"
            ) from None
        except RayError as error:
            raise TrainingFailed(f"{what} failed: {reason(error)}") from None
