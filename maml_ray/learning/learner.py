"""The learner: rollouts of a meta-batch to one meta-update. No Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maml_ray.backends import compiled
from maml_ray.backends.gradient_stats import GradientDiagnostics, diagnose_gradient
from maml_ray.backends.microbatch import passes_on
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.config.settings import Settings
from maml_ray.learning.batch_builder import Assembly
from maml_ray.learning.gradient_update import GradientUpdate
from maml_ray.learning.off_policy import recentered
from maml_ray.learning.optimizer import OuterOptimizer, OuterStep
from maml_ray.learning.staleness import collection_version
from maml_ray.learning.state import (
    LearnerState,
    UpdateMetrics,
    collection_params,
    initial_learner_state,
    policy_snapshot,
)
from maml_ray.learning.trust_region import TrustRegionUpdate
from maml_ray.maml import inner_loop
from maml_ray.maml.distributions import Parameters, to_numpy, to_torch
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, collector_ratio_error
from maml_ray.maml.meta_parameters import meta_parameter_shapes
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.trajectories import (
    TaskRollouts,
    Trajectories,
    validate_rollouts,
    validate_task_rollouts,
)


class MetaLearner:
    """Parameters, optimizer and version; :meth:`update` turns rollouts into the next version.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        device: where to compute.
        threads: CPU threads to compute with; their number changes no bit.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        device: torch.device | str = "cpu",
        threads: int = 1,
    ) -> None:
        self.settings = settings
        self.spec = spec
        self.device = torch.device(device)
        self._passes = passes_on(self.device, settings, spec, threads=threads)
        self.version: int
        self._observations: RunningStatistics
        self._skipped_in_a_row: int
        self._discarded_episodes: int
        self._behind: PolicyParameters | None
        self._assembly: Assembly | None
        self.load(initial_learner_state(settings, spec))

    def warm_up(self) -> None:
        """Do ahead of the first update what it would wait for: imports, and compiled loops."""
        by_loops = compiled.goes_by_loops(self.settings, self.spec, self.device)
        if by_loops:
            compiled.warm_up(self.settings, self.spec)
        if not by_loops or self.settings.meta_batch.async_collection:  # which vectorizes a function
            inner_loop.warm_up()

    def publish(self) -> PolicyParameters:
        """The current parameters, for the actors."""
        return policy_snapshot(self.settings.policy, self.state())

    def collection_params(self) -> PolicyParameters:
        """What the meta-batch of the next update is collected with."""
        return collection_params(self.settings.policy, self.state())

    def update(self, rollouts: Sequence[TaskRollouts]) -> UpdateMetrics:
        """One meta-update from the rollouts of one meta-batch, in any order, taken before or not.

        Where a task cannot be learned from, or a number of the update is not finite, the update is
        skipped: parameters and optimizer stay as they were, and the version goes on.

        Raises:
            ValueError: the rollouts are not exactly one of each task of the meta-batch, or were
                collected with another version of the parameters than :meth:`collection_params` gives.
        """
        start = time.perf_counter()
        collector = collection_version(self.settings.meta_batch, self.version)
        ordered = validate_rollouts(
            rollouts,
            num_tasks=self.settings.meta_batch.tasks,
            inner_steps=self.settings.inner.steps,
            version=collector,
        )
        sound = [task for task in ordered if task.failure is None]
        before = self.state()
        if len(sound) == len(ordered):
            step, gradient, skipped = self._step(ordered)
        else:
            step, gradient, skipped = None, None, _first_broken(ordered)
        if skipped is not None:
            self.load(before)
        self._assembly = None
        self.version = before.version + 1
        if self.settings.meta_batch.async_collection:
            self._behind = policy_snapshot(self.settings.policy, before)
        self._skipped_in_a_row = before.skipped_in_a_row + 1 if skipped is not None else 0
        self._discarded_episodes += sum(task.discarded for task in ordered)
        if sound:
            # Only now: within a version the actors and the meta-gradient see the same constants.
            self._observations = sum((task.obs_stats for task in sound), self._observations)
        first = [task.support[0] if task.support else task.query for task in sound]
        last = [task.query for task in sound]
        return UpdateMetrics(
            version=self.version,
            return_before=_mean_return(first),
            return_after=_mean_return(last),
            speed_before=_mean_speed(first),
            speed_after=_mean_speed(last),
            loss=step.loss if step else math.nan,
            gradient_norm=step.gradient_norm if step else math.nan,
            gradient_snr=gradient.snr if gradient else None,
            order_cosine=gradient.order_cosine if gradient else None,
            inner_kl=float(step.after.inner_kl) if step else math.nan,
            query_kl=float(step.after.query_kl) if step else math.nan,
            clip_fraction=float(step.after.clip_fraction) if step else math.nan,
            collector_ratio_error=float(step.before.largest_ratio_error) if step else math.nan,
            entropy=float(step.after.entropy) if step else math.nan,
            gradient_steps=step.steps if step else 0,
            learning_rate=step.learning_rate if step else None,
            env_steps=sum(task.env_steps for task in ordered),
            learn_s=time.perf_counter() - start,
            skipped=skipped,
            skipped_in_a_row=self._skipped_in_a_row,
            discarded_episodes=self._discarded_episodes,
            staleness=before.version - collector,
        )

    def _step(
        self, rollouts: Sequence[TaskRollouts]
    ) -> tuple[OuterStep | None, GradientDiagnostics | None, str | None]:
        """One step of the optimizer: how it went, or why it is to be undone."""
        batch = collected = self.prepare(rollouts)
        if self._behind is not None:
            told = (self.settings, self.spec, self.parameters)
            batch = recentered(*told, collected, self._passes)
        gradient = self._diagnosed(batch)
        step = self._optimizer.update(batch, self.version, order=self._order())
        if not math.isfinite(step.loss) or not math.isfinite(step.gradient_norm):
            return None, None, "the meta-loss or its gradient is not finite"
        state = self._optimizer.state()
        moved = (to_numpy(self.parameters), state.first_moments, state.second_moments)
        if not all(np.isfinite(value).all() for part in moved for value in part.values()):
            return None, None, "the parameters would not be finite"
        if self._behind is not None:  # what was looked at first are not the policies that collected
            error = collector_ratio_error(collected)
            step = replace(step, before=step.before._replace(largest_ratio_error=error))
        return step, gradient, None

    def take(self, rollouts: Sequence[TaskRollouts]) -> None:
        """Prepare for the next update what has come of its meta-batch: it changes no bit of it.

        Raises:
            ValueError: as :meth:`update`, for a task that it would refuse.
        """
        for task in rollouts:
            validate_task_rollouts(
                task,
                num_tasks=self.settings.meta_batch.tasks,
                inner_steps=self.settings.inner.steps,
                version=collection_version(self.settings.meta_batch, self.version),
            )
            self._assembly = self._assembly or self.assemble()
            self._assembly.take(task)

    def prepare(self, rollouts: Sequence[TaskRollouts]) -> MetaBatch:
        """Rollouts, in the order of their tasks, as tensors on the learner's device."""
        return (self._assembly or self.assemble()).finished(rollouts)

    def assemble(self) -> Assembly:
        """Places for the next meta-batch, of which nothing is there yet."""
        parameters, normalizer = self.parameters, self._normalizer()
        if self._behind is not None:
            values, normalizer = to_torch(self._behind.values), self._behind.normalizer
            parameters = {name: value.to(self.device) for name, value in values.items()}
        return Assembly(self.settings, self.spec, parameters, normalizer, self._passes)

    def state(self) -> LearnerState:
        """A copy of everything that :meth:`load` needs."""
        return LearnerState(
            version=self.version,
            parameters=to_numpy(self.parameters),
            optimizer=self._optimizer.state(),
            obs_stats=self._observations,
            skipped_in_a_row=self._skipped_in_a_row,
            discarded_episodes=self._discarded_episodes,
            stale_params=self._behind,
        )

    def load(self, state: LearnerState) -> None:
        """Go on from ``state``, to the last bit.

        Raises:
            ValueError: the state is of a policy with other parameters, or goes on from a meta-batch
                of another version than the settings' next one.
        """
        asked = meta_parameter_shapes(self.spec, self.settings.inner)
        next_with = state.stale_params or PolicyParameters(state.version, state.parameters, None)
        for values in (state.parameters, next_with.values):
            shapes = {name: tuple(value.shape) for name, value in values.items()}
            if shapes != asked:
                raise ValueError(
                    f"the state holds parameters {shapes}, the settings ask for {asked}"
                )
        version = collection_version(self.settings.meta_batch, state.version)
        if next_with.version != version:
            raise ValueError(
                f"the state goes on from a meta-batch of version {next_with.version}, "
                f"the settings from one of version {version}: meta_batch.async_collection is another"
            )
        self.version, self._assembly = state.version, None
        self._behind = state.stale_params and replace(
            state.stale_params, values={name: state.stale_params.values[name] for name in asked}
        )
        self._observations = state.obs_stats
        self._skipped_in_a_row = state.skipped_in_a_row
        self._discarded_episodes = state.discarded_episodes
        self.parameters = self._leaves(
            # In the policy's own order, whatever order a file gave: sums over parameters round.
            {name: torch.tensor(state.parameters[name]) for name in asked}
        )
        self._optimizer = self._make_optimizer()
        self._optimizer.load(state.optimizer)

    def _diagnosed(self, batch: MetaBatch) -> GradientDiagnostics | None:
        every = self.settings.outer.diagnose_every
        if every is None or self.version % every:
            return None
        return diagnose_gradient(self.settings, self.spec, self.parameters, batch, self._passes)

    def _order(self) -> Order:
        """The order of this update's meta-gradient; hybrid begins with the cheaper one."""
        outer = self.settings.outer
        if outer.order == "hybrid":
            return "first" if self.version < outer.first_order_iterations else "second"
        return outer.order

    def _normalizer(self) -> Normalizer | None:
        if not self.settings.policy.normalize_observations:
            return None
        return self._observations.normalizer()

    def _make_optimizer(self) -> OuterOptimizer:
        trust = self.settings.outer.objective == "trpo"
        kind = TrustRegionUpdate if trust else GradientUpdate
        return kind(self.settings, self.spec, self.parameters, self._passes)

    def _leaves(self, values: Mapping[str, Tensor]) -> Parameters:
        return {
            name: value.to(self.device).clone().requires_grad_() for name, value in values.items()
        }


def _first_broken(rollouts: Sequence[TaskRollouts]) -> str:
    broken = [task for task in rollouts if task.failure is not None]
    others = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"task {broken[0].task_index} ({broken[0].task.name}), {broken[0].failure}{others}"


def _mean_return(phases: Sequence[Trajectories]) -> float:
    return float(np.mean([phase.returns for phase in phases])) if phases else math.nan


def _mean_speed(phases: Sequence[Trajectories]) -> float | None:
    speeds = [phase.speeds for phase in phases if phase.speeds is not None]
    return float(np.mean(speeds)) if speeds else None
