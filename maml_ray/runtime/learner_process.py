"""Start learner actors, and keep a spare one ready to take over: the standby learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from maml_ray.config.settings import Settings
from maml_ray.learning.state import LearnerState
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.actor_group import FETCH_TIMEOUT_S
from maml_ray.runtime.actor_handle import HEARTBEAT_TIMEOUT_S, describe_error
from maml_ray.runtime.actors import ActorLocation, LearnerActor, as_actor
from maml_ray.runtime.capacity import Capacity, ResourcePlan
from maml_ray.runtime.fault_policy import REPLACEMENT, Failure, FailureReport
from maml_ray.runtime.ray_internals import get_unplaced_actors
from maml_ray.runtime.run_context import RunContext

_NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives to every node."""


@dataclass(frozen=True)
class LearnerProcess:
    """One learner actor.

    Attributes:
        name: Ray name of the actor.
        actor: Ray's own handle.
        description_ref: reference to the description of its device, ready once the actor is up.
        location_ref: reference to its ActorLocation; requested at the start, while it is alive.
    """

    name: str
    actor: Any
    description_ref: ray.ObjectRef[Any]
    location_ref: ray.ObjectRef[Any]

    @property
    def location(self) -> ActorLocation | None:
        """Where the actor runs; None if it is not up or never was."""
        try:
            location: ActorLocation = ray.get(self.location_ref, timeout=0)
        except RayError:
            return None
        return location

    def classify_death(self, error: RayError, default: Failure, capacity: Capacity) -> Failure:
        """Return PREEMPTED if the actor's node was being drained when it died, else ``default``."""
        location = self.location
        draining = location is not None and capacity.is_draining(location.node_id)
        preempted = isinstance(error, RayActorError) and error.preempted
        return Failure.PREEMPTED if preempted or draining else default


class LearnerFactory:
    """Start learner actors under names that are unique within the run.

    Args:
        settings: of the run.
        spec: sizes of the policy.
        plan: the learner's device, and its share of a GPU.
        namespace: Ray namespace of the run's actors.
    """

    def __init__(
        self, settings: Settings, spec: PolicySpec, plan: ResourcePlan, namespace: str
    ) -> None:
        self._settings, self._spec, self._plan = settings, spec, plan
        self._namespace = namespace
        self._num_started = 0

    @property
    def takes_gpu(self) -> bool:
        """Whether a learner takes a GPU, or a share of one."""
        return self._plan.learner_gpus > 0

    def start(self, state: LearnerState, away_from: ActorLocation | None = None) -> LearnerProcess:
        """Start an actor that loads ``state``; on another node than ``away_from``, if there is."""
        # Ray frees the name of a killed actor late, so each has a name of its own.
        number = f"{REPLACEMENT}{self._num_started}" if self._num_started else ""
        self._num_started += 1
        name, placement = f"learner{number}", dict[str, Any]()
        if away_from is not None:
            elsewhere = {_NODE_LABEL: f"!{away_from.node_id}"}
            anywhere: list[dict[str, Any]] = [{"label_selector": {}}]
            placement = {"label_selector": elsewhere, "fallback_strategy": anywhere}
        actor = (
            as_actor(LearnerActor)
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=0,
                num_gpus=self._plan.learner_gpus,
                **placement,
            )
            .remote(
                self._settings,
                self._spec,
                self._plan.learner_device,
                self._settings.cluster.learner_threads,
                state,
            )
        )
        return LearnerProcess(name, actor, actor.describe.remote(), actor.location.remote())


class StandbyLearner:
    """Keep a learner started and warmed up, which takes over when the active one dies.

    Args:
        factory: starts it.
        context: failure handling and messages.
        max_attempts: consecutive failed starts after which the run continues without a standby.
    """

    def __init__(self, factory: LearnerFactory, context: RunContext, max_attempts: int) -> None:
        self._factory, self._context = factory, context
        self._max_attempts = max_attempts
        self._failed_starts = 0
        self._process: LearnerProcess | None = None
        self._reply: ray.ObjectRef[Any]
        self._is_up = False

    def maintain(self, state: LearnerState, active: LearnerProcess) -> None:
        """Start a standby if there is none, and notice its death, without waiting.

        Args:
            state: any state of the learner: the one that takes over loads the latest.
            active: the learner, on whose node the standby should not be.

        Raises:
            TrainingFailed: the standby has died, and a fault budget is spent.
        """
        process = self._process
        if process is None:
            if self._failed_starts < self._max_attempts:
                self._process = process = self._factory.start(state, active.location)
                self._reply, self._is_up = process.description_ref, False
            return
        if not ray.wait([self._reply], timeout=0)[0]:  # it starts, or hangs, as take() will notice
            return
        try:
            ray.get(self._reply, timeout=FETCH_TIMEOUT_S)
        except RayError as error:
            self._discard(process, error)
            return
        if not self._is_up:
            self._is_up, self._failed_starts = True, 0
            self._context.on_event(f"the standby learner is ready: {process.name}")
        self._reply = process.actor.describe.remote()

    def take(self) -> LearnerProcess | None:
        """Return the standby, which is then the caller's; None if there is none that works.

        One that is still starting is returned as well: a new one would be up later. Waits for at
        most ``HEARTBEAT_TIMEOUT_S``.

        Raises:
            TrainingFailed: the standby has died as well, and a fault budget is spent.
        """
        process = self._process
        if process is None:
            return None
        if self._is_up or ray.wait([self._reply], timeout=0)[0]:
            try:
                ray.get(process.actor.describe.remote(), timeout=HEARTBEAT_TIMEOUT_S)
            except RayError as error:
                self._discard(process, error)
                return None
        elif self._factory.takes_gpu and process.name in get_unplaced_actors():
            # It may wait for a GPU that never comes; a new one takes that of the dead learner.
            self.close()
            return None
        self._process = None
        return process

    def close(self) -> None:
        """Kill the standby, if there is one."""
        if self._process is not None:
            ray.kill(self._process.actor)
            self._process = None

    def _discard(self, process: LearnerProcess, error: RayError) -> None:
        """Kill a standby that failed; :meth:`maintain` starts another."""
        self.close()
        self._failed_starts += not self._is_up
        default = Failure.ACTOR_DIED if self._is_up else Failure.START_FAILED
        failure = process.classify_death(error, default, self._context.capacity)
        message = f"it was the standby; {describe_error(error)}"
        self._context.handle_failure(FailureReport(failure, "", process.name, 0, message))
        if self._failed_starts >= self._max_attempts:
            self._context.on_event(
                f"the standby learner could not start {self._failed_starts} times in a row: the "
                "run continues without one"
            )
