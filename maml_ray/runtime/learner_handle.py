"""The driver's side of the learner actor: it is watched, and begun anew where it died.

The driver keeps the learner's last state, in its own memory: the learner's death, or its node's,
does not take it along.
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
from maml_ray.runtime.actor_group import FETCH_S, TELL_EVERY_S
from maml_ray.runtime.actor_handle import describe_activity, reason
from maml_ray.runtime.actors import LearnerActor, watched
from maml_ray.runtime.capacity import Capacity, describe_free
from maml_ray.runtime.fault_policy import REPLACEMENT, Failure, Observation
from maml_ray.runtime.heartbeat import Place
from maml_ray.runtime.ray_session import ResourcePlan
from maml_ray.runtime.rollout_pool import POLL_S

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Memory that the learner frees stays with it (glibc, mallopt(3)): to get some tens of thousands of
pages anew in each update, zeroed by the kernel, takes up to a third of the update's time."""
Meanwhile = Callable[[Sequence[ray.ObjectRef[Any]]], None]
"""What is done while the learner is waited for: it returns soon, or when a reference is there."""
GRACE_S = 3.0
"""How long a request to stop lets an update finish that is under way."""


class RolloutsLost(Exception):
    """The learner could not get some of the rollouts: the node that held them has gone."""


class LearnerClient:
    """Starts the learner actor, speaks to it, and starts another where it dies.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        plan: whether the learner takes a GPU.
        namespace: Ray namespace of the actor's name.
        capacity: tells which nodes were announced to go away.
        state: where the learner begins, or goes on.
        settle: notes a failure; may raise to end the run.
        on_event: told of what is waited for.
        check_stop: called while waiting; may raise to abandon the wait.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        plan: ResourcePlan,
        namespace: str,
        capacity: Capacity,
        *,
        state: LearnerState,
        settle: Callable[[Observation], None],
        on_event: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._settings, self._spec, self._plan = settings, spec, plan
        self._namespace, self._capacity = namespace, capacity
        self._state = state
        self._settle, self._on_event, self._check_stop = settle, on_event, check_stop
        self._generation = 0
        self._actor: Any = self._start()

    @property
    def state(self) -> LearnerState:
        """The learner's last."""
        return self._state

    @property
    def restarts(self) -> int:
        """How often another learner was begun."""
        return self._generation

    def wait_until_ready(self, meanwhile: Meanwhile | None = None) -> str:
        """Wait for the learner; where it computes, in words.

        One that dies at its start, with its process or its node, is begun anew.

        Args:
            meanwhile: called over and over until it is up; may raise to give it up.

        Raises:
            ResourceError: it was not up within ``cluster.start_timeout_s``, or could not start.
            TrainingFailed: it died too often.
        """
        attempts = 0
        while True:
            ref = self._actor.describe.remote()
            self._wait_for_start(ref, meanwhile)
            try:
                description: str = ray.get(ref, timeout=FETCH_S)
            except RayError as error:
                own = getattr(error, "actor_init_failed", False)  # the next would fail alike
                if own or not isinstance(error, RayActorError):
                    raise ResourceError(f"the learner could not start: {reason(error)}") from None
                attempts += 1
                failure = self._how_it_died(error, Failure.START_FAILED)
                told = Observation(failure, "the start", self._name(), attempts, reason(error))
                self._begin_anew(told)
            else:
                return description

    def _wait_for_start(self, ref: ray.ObjectRef[Any], meanwhile: Meanwhile | None) -> None:
        timeout = self._settings.cluster.start_timeout_s
        began = told = time.monotonic()
        while not _are_there([ref], meanwhile):
            self._check_stop()
            now = time.monotonic()
            if now - began > timeout:
                raise ResourceError(
                    f"the learner did not start within {timeout:.0f} s (cluster.start_timeout_s); "
                    f"{describe_free()}: its GPU may be taken by another job"
                )
            if now - told > TELL_EVERY_S:
                told = now
                gpu = " and its GPU" if self._plan.learner_gpus else ""
                self._on_event(
                    f"waiting for the learner{gpu}, for {now - began:.0f} s of {timeout:.0f} s "
                    f"(cluster.start_timeout_s); {describe_free()}"
                )

    def take(self, rollouts: Sequence[ray.ObjectRef[Any]]) -> None:
        """Send some of the next update's rollouts ahead, and wait for nothing.

        What goes wrong with them then, goes wrong with the update too, which is given them again.
        """
        self._actor.take.options(name="take rollouts", num_returns=0).remote(*rollouts)

    def update(
        self, rollouts: Sequence[ray.ObjectRef[Any]], meanwhile: Meanwhile | None = None
    ) -> UpdateMetrics:
        """One meta-update, by another learner where the first one dies at it.

        The rollouts go from the actors' nodes to the learner's; the driver never holds them.

        Args:
            rollouts: references to one meta-batch's.
            meanwhile: called over and over until the update is there; may raise to give it up.

        Raises:
            RolloutsLost: they are not all there any more.
            TrainingFailed: the update raised, or failed too often.
            Interrupted: a request to stop came, and the update did not end soon after.
        """
        work, attempts = f"the meta-update of version {self.state.version}", 0
        while True:
            metrics, state = self._actor.update.options(name="meta-update", num_returns=2).remote(
                *rollouts
            )
            try:
                failed = self._wait_for(metrics, state, meanwhile=meanwhile)
                if failed is None:
                    result: UpdateMetrics = ray.get(metrics, timeout=FETCH_S)
                    self._state = ray.get(state, timeout=FETCH_S)
                    return result
            except RayTaskError as error:
                if isinstance(error, ObjectLostError) or isinstance(error.cause, ObjectLostError):
                    raise RolloutsLost(reason(error)) from None
                if not isinstance(error.cause, RayError):
                    raise TrainingFailed(f"{work} failed: {reason(error)}") from None
                failed = (Failure.DATA_LOST, reason(error))
            except RayError as error:
                failed = (self._how_it_died(error, Failure.ACTOR_DIED), reason(error))
            attempts += 1
            self._begin_anew(Observation(failed[0], work, self._name(), attempts, failed[1]))

    def close(self) -> None:
        """End the learner."""
        ray.kill(self._actor)

    def _start(self) -> Any:
        actor = (
            watched(LearnerActor)
            .options(
                name=self._name(),
                namespace=self._namespace,
                num_cpus=0,
                num_gpus=self._plan.learner_gpus,
                runtime_env={"env_vars": KEPT_MEMORY},
            )
            .remote(
                self._settings,
                self._spec,
                self._plan.learner_device,
                self._settings.cluster.learner_threads,
                self._state,
            )
        )
        self._place = actor.place.remote()  # answered once it is up, and then known here
        return actor

    def _name(self) -> str:
        return "learner" + (f"{REPLACEMENT}{self._generation}" if self._generation else "")

    def _begin_anew(self, observation: Observation) -> None:
        """Another learner, from the last state, if the budgets allow."""
        self._settle(observation)
        ray.kill(self._actor)
        self._generation += 1
        self._actor = self._start()

    def _how_it_died(self, error: RayError, otherwise: Failure) -> Failure:
        told = isinstance(error, RayActorError) and error.preempted
        return Failure.PREEMPTED if told or self._announced() else otherwise

    def _announced(self) -> bool:
        """Whether the learner's node was announced to go away."""
        try:
            place: Place = ray.get(self._place, timeout=0)
        except RayError:  # it never came up
            return False
        return self._capacity.announced(place.node_id)

    def _wait_for(
        self, *refs: ray.ObjectRef[Any], meanwhile: Meanwhile | None = None
    ) -> tuple[Failure, str] | None:
        """Wait for an update; why it is given up, or None when all of it is there."""
        limits, began = self._settings.cluster, time.monotonic()
        told, stop_by = began, None
        while not _are_there(refs, meanwhile):
            now = time.monotonic()
            self._capacity.look()  # the end of the learner's node may be announced meanwhile
            try:
                self._check_stop()
            except Interrupted:
                stop_by = stop_by or now + GRACE_S
                if now > stop_by:
                    raise
            if now - told > limits.stall_s:
                told = now
                self._on_event(
                    f"the meta-update has taken {now - began:.0f} s so far:\n"
                    f"{describe_activity({self._name(): self._actor})}"
                )
            if now - began > limits.task_timeout_s:
                return Failure.TIMED_OUT, f"cluster.task_timeout_s is {limits.task_timeout_s:.0f}"
        return None


def _are_there(refs: Sequence[ray.ObjectRef[Any]], meanwhile: Meanwhile | None) -> bool:
    """Whether all are there, or come within half a second."""
    if meanwhile is not None:
        meanwhile(refs)
    patience = POLL_S if meanwhile is None else 0
    return not ray.wait(list(refs), num_returns=len(refs), timeout=patience)[1]
