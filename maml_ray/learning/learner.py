"""Update meta-parameters from the rollouts of a meta-batch, without Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maml_ray.backends.dispatch import make_backend
from maml_ray.backends.gradient_stats import GradientStats, gradient_stats
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.config.settings import Settings
from maml_ray.learning.adam_optimizer import AdamOptimizer
from maml_ray.learning.batch_builder import MetaBatchBuilder
from maml_ray.learning.off_policy import decouple_behavior
from maml_ray.learning.optimizer import OuterOptimizer, UpdateResult
from maml_ray.learning.staleness import collection_version
from maml_ray.learning.state import (
    LearnerState,
    UpdateMetrics,
    collection_params,
    initial_learner_state,
    policy_snapshot,
)
from maml_ray.learning.trust_region import TrustRegionOptimizer
from maml_ray.maml import inner_loop
from maml_ray.maml.distributions import Parameters, to_numpy, to_torch
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import outer_objective
from maml_ray.maml.meta_objective import MetaBatch, behavior_ratio_error
from maml_ray.maml.meta_parameters import meta_parameter_shapes
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.trajectories import (
    TaskRollouts,
    Trajectories,
    mean_info,
    validate_rollouts,
    validate_task_rollouts,
)


class MetaLearner:
    """Own meta-parameters, optimizer and version; turn rollouts into the next version.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        device: to compute on.
        threads: CPU threads to compute with; the bits do not depend on their number.

    Raises:
        SettingsError: the outer objective is unknown.
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
        self.backend = make_backend(settings, spec, self.device, threads=threads)
        self.version: int
        self._obs_stats: RunningStatistics
        self._skipped_in_a_row: int
        self._discarded_episodes: int
        self._stale_params: PolicyParameters | None
        self._builder: MetaBatchBuilder | None
        self.load(initial_learner_state(settings, spec))

    def warm_up(self) -> None:
        """Do ahead of the first update what it would wait for: imports and compilation."""
        self.backend.warm_up()
        if self.settings.meta_batch.async_collection:
            inner_loop.warm_up()  # the off-policy correction is vectorized by torch.func

    def publish(self) -> PolicyParameters:
        """Return a snapshot of the current policy, for the rollout actors."""
        return policy_snapshot(self.settings.policy, self.state())

    def collection_params(self) -> PolicyParameters:
        """Return the snapshot that collects the meta-batch of the next update."""
        return collection_params(self.settings.policy, self.state())

    def update(self, rollouts: Sequence[TaskRollouts]) -> UpdateMetrics:
        """Update from the rollouts of one meta-batch, in any order, prefetched or not.

        The update is skipped if a task failed or a number of the update is not finite: parameters
        and optimizer stay, and the version advances.

        Raises:
            ValueError: the rollouts are not exactly one of each task of the meta-batch, or were
                collected with another version than :meth:`collection_params` has.
        """
        start = time.perf_counter()
        collected_version = collection_version(self.settings.meta_batch, self.version)
        ordered = validate_rollouts(
            rollouts,
            num_tasks=self.settings.meta_batch.tasks,
            inner_steps=self.settings.inner.steps,
            version=collected_version,
        )
        valid = [task for task in ordered if task.failure is None]
        before = self.state()
        result, stats, skipped = None, None, None
        if len(valid) == len(ordered):
            result, stats, skipped = self._step(ordered)
        else:
            skipped = _describe_failures(ordered)
        if skipped is not None:
            self.load(before)
        self._builder = None
        self.version = before.version + 1
        if self.settings.meta_batch.async_collection:
            self._stale_params = policy_snapshot(self.settings.policy, before)
        self._skipped_in_a_row = before.skipped_in_a_row + 1 if skipped is not None else 0
        self._discarded_episodes += sum(task.discarded for task in ordered)
        # Last: within a version actors and meta-gradient must normalize by the same constants.
        self._obs_stats = sum((task.obs_stats for task in valid), self._obs_stats)
        first = [task.support[0] if task.support else task.query for task in valid]
        last = [task.query for task in valid]
        names = self.settings.task.info_metrics
        return UpdateMetrics(
            version=self.version,
            return_before=_mean_return(first),
            return_after=_mean_return(last),
            speed_before=mean_info(first, "speed"),
            speed_after=mean_info(last, "speed"),
            loss=result.loss if result else math.nan,
            gradient_norm=result.gradient_norm if result else math.nan,
            gradient_snr=stats.snr if stats else None,
            order_cosine=stats.order_cosine if stats else None,
            inner_kl=float(result.after.inner_kl) if result else math.nan,
            query_kl=float(result.after.query_kl) if result else math.nan,
            clip_fraction=float(result.after.clip_fraction) if result else math.nan,
            collector_ratio_error=float(result.before.max_ratio_error) if result else math.nan,
            entropy=float(result.after.entropy) if result else math.nan,
            gradient_steps=result.steps if result else 0,
            learning_rate=result.learning_rate if result else None,
            env_steps=sum(task.env_steps for task in ordered),
            learn_s=time.perf_counter() - start,
            skipped=skipped,
            skipped_in_a_row=self._skipped_in_a_row,
            discarded_episodes=self._discarded_episodes,
            staleness=before.version - collected_version,
            infos_before={name: mean_info(first, name) for name in names},
            infos_after={name: mean_info(last, name) for name in names},
        )

    def _step(
        self, rollouts: Sequence[TaskRollouts]
    ) -> tuple[UpdateResult | None, GradientStats | None, str | None]:
        """Take one optimizer update.

        Returns:
            Its result, statistics of the gradient if these are due, and None; or the reason why it
            must be undone, last.
        """
        batch = collected = self.prepare(rollouts)
        if self._stale_params is not None:
            batch = decouple_behavior(self.backend, self.parameters, collected)
        stats = self._gradient_stats(batch)
        result = self._optimizer.update(batch, self.version, order=self._order())
        if not math.isfinite(result.loss) or not math.isfinite(result.gradient_norm):
            return None, None, "the meta-loss or its gradient is not finite"
        state = self._optimizer.state()
        updated = (to_numpy(self.parameters), state.first_moments, state.second_moments)
        if not all(np.isfinite(value).all() for part in updated for value in part.values()):
            return None, None, "the parameters would not be finite"
        if self._stale_params is not None:  # diagnostics are relative to the current policies
            error = behavior_ratio_error(collected)
            result = replace(result, before=result.before._replace(max_ratio_error=error))
        return result, stats, None

    def prefetch(self, rollouts: Sequence[TaskRollouts]) -> None:
        """Prepare some rollouts of the next meta-batch ahead of :meth:`update`.

        The update's bits do not depend on what was prefetched.

        Raises:
            ValueError: :meth:`update` would refuse one of them.
        """
        for task in rollouts:
            validate_task_rollouts(
                task,
                num_tasks=self.settings.meta_batch.tasks,
                inner_steps=self.settings.inner.steps,
                version=collection_version(self.settings.meta_batch, self.version),
            )
            self._builder = self._builder or self._new_builder()
            if task.failure is None:  # otherwise the update will be skipped
                self._builder.add(task)

    def prepare(self, rollouts: Sequence[TaskRollouts]) -> MetaBatch:
        """Return the meta-batch of rollouts, which are in the order of their tasks."""
        return (self._builder or self._new_builder()).build(rollouts)

    def _new_builder(self) -> MetaBatchBuilder:
        parameters, normalizer = self.parameters, self._normalizer()
        if self._stale_params is not None:
            parameters = to_torch(self._stale_params.values, self.device)
            normalizer = self._stale_params.normalizer
        return MetaBatchBuilder(self.settings, self.backend, parameters, normalizer)

    def state(self) -> LearnerState:
        """Return a copy of everything that :meth:`load` needs."""
        return LearnerState(
            version=self.version,
            parameters=to_numpy(self.parameters),
            optimizer=self._optimizer.state(),
            obs_stats=self._obs_stats,
            skipped_in_a_row=self._skipped_in_a_row,
            discarded_episodes=self._discarded_episodes,
            stale_params=self._stale_params,
        )

    def load(self, state: LearnerState) -> None:
        """Resume from ``state``, bit for bit.

        Raises:
            ValueError: the state has other parameters than the settings ask for, or its next
                meta-batch is collected by another version than theirs.
        """
        shapes = meta_parameter_shapes(self.spec, self.settings.inner)
        next_with = state.stale_params or PolicyParameters(state.version, state.parameters, None)
        for values in (state.parameters, next_with.values):
            present = {name: tuple(value.shape) for name, value in values.items()}
            if present != shapes:
                raise ValueError(
                    f"the state holds parameters {present}, the settings ask for {shapes}"
                )
        version = collection_version(self.settings.meta_batch, state.version)
        if next_with.version != version:
            raise ValueError(
                f"the state's next meta-batch is of version {next_with.version}, the settings' of "
                f"version {version}: meta_batch.async_collection has changed"
            )
        self.version, self._builder = state.version, None
        self._stale_params = state.stale_params and replace(
            state.stale_params, values={name: state.stale_params.values[name] for name in shapes}
        )
        self._obs_stats = state.obs_stats
        self._skipped_in_a_row = state.skipped_in_a_row
        self._discarded_episodes = state.discarded_episodes
        self.parameters = self._leaves(
            # In the policy's own order, whatever a file's: rounding depends on it.
            {name: torch.tensor(state.parameters[name]) for name in shapes}
        )
        self._optimizer = self._make_optimizer()
        self._optimizer.load(state.optimizer)

    def _gradient_stats(self, batch: MetaBatch) -> GradientStats | None:
        every = self.settings.outer.diagnose_every
        if every is None or self.version % every:
            return None
        return gradient_stats(self.backend, self.parameters, batch)

    def _order(self) -> Order:
        """Return the order of this update's meta-gradient; hybrid starts with first order."""
        outer = self.settings.outer
        if outer.order == "hybrid":
            return "first" if self.version < outer.first_order_iterations else "second"
        return outer.order

    def _normalizer(self) -> Normalizer | None:
        if not self.settings.policy.normalize_observations:
            return None
        return self._obs_stats.normalizer()

    def _make_optimizer(self) -> OuterOptimizer:
        trust_region = outer_objective(self.settings.outer.objective).uses_trust_region
        kind = TrustRegionOptimizer if trust_region else AdamOptimizer
        return kind(self.settings, self.parameters, self.backend)

    def _leaves(self, values: Mapping[str, Tensor]) -> Parameters:
        return {
            name: value.to(self.device).clone().requires_grad_() for name, value in values.items()
        }


def _describe_failures(rollouts: Sequence[TaskRollouts]) -> str:
    failed = [task for task in rollouts if task.failure is not None]
    others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"task {failed[0].task_index} ({failed[0].task.name}), {failed[0].failure}{others}"


def _mean_return(phases: Sequence[Trajectories]) -> float:
    return float(np.mean([phase.returns for phase in phases])) if phases else math.nan
