"""The learner: rollouts of a meta-batch to one meta-update. No Ray.

For each epoch and mini-batch of tasks the meta-objective is computed anew from the current
parameters, inner steps included, and an optimiser steps down its gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.adaptation import adapt
from maml_ray.advantages import advantages
from maml_ray.config import Settings
from maml_ray.meta_objective import Diagnostics, MetaBatch, meta_loss
from maml_ray.normalisation import Normaliser, RunningStatistics
from maml_ray.objectives import Samples, inner_losses, make_samples
from maml_ray.policy import (
    LOG_STD,
    Gaussian,
    Parameters,
    PolicyParameters,
    PolicySpec,
    distribution,
    entropy,
    initial_parameters,
    project,
    to_numpy,
)
from maml_ray.seeding import Purpose, generator
from maml_ray.trajectories import TaskRollouts, Trajectories


@dataclass(frozen=True)
class UpdateMetrics:
    """One meta-update in numbers.

    Attributes:
        version: of the parameters after the update.
        return_before: mean undiscounted return of the first support episodes.
        return_after: mean undiscounted return of the query episodes.
        loss: meta-loss on the last mini-batch looked at.
        gradient_norm: Euclidean norm of the first step's meta-gradient, before clipping.
        inner_kl: KL between the policies that collected support data and today's, mean.
        query_kl: the same for the adapted policies on query data (k3 estimate).
        clip_fraction: share of query steps whose ratio lies outside the clip range at the end.
        collector_ratio_error: largest ``|ratio - 1|`` on query data before the first step: what
            the learner's adapted policies differ from the actors'. Rounding, or a defect.
        entropy: of the action distribution, in nats.
        gradient_steps: steps of the optimiser; fewer than planned where the policies had moved as
            far as ``outer.max_query_kl`` allows.
        learning_rate: the outer rate used.
        env_steps: environment steps in the meta-batch.
        learn_s: seconds that the update took.
    """

    version: int
    return_before: float
    return_after: float
    loss: float
    gradient_norm: float
    inner_kl: float
    query_kl: float
    clip_fraction: float
    collector_ratio_error: float
    entropy: float
    gradient_steps: int
    learning_rate: float
    env_steps: int
    learn_s: float


@dataclass(frozen=True)
class LearnerState:
    """All that a learner needs to go on: parameters, optimiser, statistics, version."""

    version: int
    parameters: Mapping[str, NDArray[np.float32]]
    first_moments: Mapping[str, NDArray[np.float32]]
    second_moments: Mapping[str, NDArray[np.float32]]
    optimiser_steps: int
    observations: RunningStatistics


class MetaLearner:
    """Parameters, optimiser and version; :meth:`update` turns rollouts into the next version.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        device: where to compute.
    """

    def __init__(
        self, settings: Settings, spec: PolicySpec, device: torch.device | str = "cpu"
    ) -> None:
        self.settings = settings
        self.spec = spec
        self.device = torch.device(device)
        self.version = 0
        fresh = initial_parameters(spec, generator(settings.run.seed, Purpose.PARAMETERS))
        self.parameters = self._leaves(fresh)
        self._optimiser = self._make_optimiser()
        self._observations = RunningStatistics.empty(spec.observation_size)

    def publish(self) -> PolicyParameters:
        """The current parameters, for the actors."""
        return PolicyParameters(self.version, to_numpy(self.parameters), self._normaliser())

    def update(self, rollouts: Sequence[TaskRollouts]) -> UpdateMetrics:
        """One meta-update from the rollouts of one meta-batch, in any order.

        Raises:
            ValueError: the rollouts are not exactly one of each task of the meta-batch, or were
                collected with another version of the parameters.
        """
        start = time.perf_counter()
        ordered = self._checked(rollouts)
        batch = self.prepare(ordered)
        learning_rate = self._learning_rate()
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        first: tuple[Diagnostics, float] | None = None
        steps = 0
        for minibatch in self._minibatches(batch):
            loss, diagnostics = meta_loss(self.settings, self.spec, self.parameters, minibatch)
            if steps and self._far_enough(diagnostics):  # before the first step it is rounding
                break
            norm = self._step(loss)
            steps += 1
            first = first or (diagnostics, norm)
        assert first is not None  # there is at least one epoch of one mini-batch
        self.version += 1
        # Only now: within a version the actors and the meta-gradient see the same constants.
        self._observations = self._observations.merged(_observations_of(ordered))
        return UpdateMetrics(
            version=self.version,
            return_before=_mean_return([task.support[0] for task in ordered]),
            return_after=_mean_return([task.query for task in ordered]),
            loss=float(loss.detach()),
            gradient_norm=first[1],
            inner_kl=float(diagnostics.inner_kl),
            query_kl=float(diagnostics.query_kl),
            clip_fraction=float(diagnostics.clip_fraction),
            collector_ratio_error=float(first[0].largest_ratio_error),
            entropy=float(entropy(self.parameters[LOG_STD].detach())),
            gradient_steps=steps,
            learning_rate=learning_rate,
            env_steps=sum(task.env_steps for task in ordered),
            learn_s=time.perf_counter() - start,
        )

    def prepare(self, rollouts: Sequence[TaskRollouts]) -> MetaBatch:
        """Advantages, flattening and stacking: rollouts to tensors on the learner's device."""
        support = tuple(
            self._stack([task.support[step] for task in rollouts])
            for step in range(self.settings.inner.steps)
        )
        query = self._stack([task.query for task in rollouts])
        return MetaBatch(support, self._collectors(support), query)

    def state(self) -> LearnerState:
        """A copy of everything that :meth:`load` needs."""
        slots = {name: self._optimiser.state.get(p, {}) for name, p in self.parameters.items()}
        zeros = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        steps = {int(slot["step"]) for slot in slots.values() if slot} or {0}
        return LearnerState(
            version=self.version,
            parameters=to_numpy(self.parameters),
            first_moments=to_numpy(
                {name: slot.get("exp_avg", zeros[name]) for name, slot in slots.items()}
            ),
            second_moments=to_numpy(
                {name: slot.get("exp_avg_sq", zeros[name]) for name, slot in slots.items()}
            ),
            optimiser_steps=steps.pop(),
            observations=self._observations,
        )

    def load(self, state: LearnerState) -> None:
        """Go on from ``state``, to the last bit.

        Raises:
            ValueError: the state is of a policy with other parameters.
        """
        shapes = {name: tuple(value.shape) for name, value in state.parameters.items()}
        if shapes != self.spec.shapes():
            raise ValueError(
                f"the state holds parameters {shapes}, the settings ask for {self.spec.shapes()}"
            )
        self.version = state.version
        self._observations = state.observations
        self.parameters = self._leaves(
            # In the policy's own order, whatever order a file gave: sums over parameters round.
            {name: torch.tensor(state.parameters[name]) for name in self.spec.shapes()}
        )
        self._optimiser = self._make_optimiser()
        if state.optimiser_steps == 0:
            return
        for name, parameter in self.parameters.items():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(float(state.optimiser_steps)),
                "exp_avg": torch.tensor(state.first_moments[name], device=self.device),
                "exp_avg_sq": torch.tensor(state.second_moments[name], device=self.device),
            }

    def _step(self, loss: Tensor) -> float:
        """One step of the optimiser down ``loss``; the norm of its gradient before clipping."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.settings.outer.max_gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), float("inf") if limit is None else limit
        )
        self._optimiser.step()
        project(self.spec, self.parameters)
        return float(norm)

    def _far_enough(self, diagnostics: Diagnostics) -> bool:
        """Whether the adapted policies are so far from their data that it says little more.

        Without this limit a rare update runs away: the further the policy has moved, the larger
        the ratios that the next step is computed from.
        """
        limit = self.settings.outer.max_query_kl
        return limit is not None and float(diagnostics.query_kl) > limit

    def _minibatches(self, batch: MetaBatch) -> Iterator[MetaBatch]:
        """The meta-batch, ``epochs`` times over, in mini-batches of whole tasks.

        What is left of an epoch after its last full mini-batch is a smaller one.
        """
        outer = self.settings.outer
        tasks = batch.query.weights.shape[0]
        size = min(outer.tasks_per_minibatch or tasks, tasks)
        rng = generator(self.settings.run.seed, Purpose.MINIBATCHES, self.version)
        for _ in range(outer.epochs):
            if size == tasks:
                yield batch
                continue
            order = torch.from_numpy(rng.permutation(tasks)).to(self.device)
            for start in range(0, tasks, size):
                yield _select(batch, order[start : start + size])

    def _collectors(self, support: tuple[Samples, ...]) -> tuple[Gaussian, ...]:
        """The distributions at the support data of the policies that collected it.

        They are today's parameters and their adaptations, since the version was checked.
        """
        inner = self.settings.inner

        def of_task(samples: tuple[Samples, ...]) -> tuple[Gaussian, ...]:
            steps = inner_losses(self.spec, inner, samples[:-1])
            frozen = {name: value.detach() for name, value in self.parameters.items()}
            theta, earlier = adapt(frozen, steps, inner.learning_rate, order="first")
            return (*earlier, distribution(self.spec, theta, samples[-1].observations))

        collectors = torch.func.vmap(of_task)(support)
        return tuple(
            Gaussian(gaussian.mean.detach(), gaussian.log_std.detach()) for gaussian in collectors
        )

    def _stack(self, phase: Sequence[Trajectories]) -> Samples:
        normaliser = self._normaliser()
        flat = [
            make_samples(
                trajectories, advantages(trajectories, self.settings.advantages), normaliser
            )
            for trajectories in phase
        ]
        return Samples(*(torch.stack(field).to(self.device) for field in zip(*flat, strict=True)))

    def _normaliser(self) -> Normaliser | None:
        if not self.settings.policy.normalise_observations:
            return None
        return self._observations.normaliser()

    def _checked(self, rollouts: Sequence[TaskRollouts]) -> list[TaskRollouts]:
        ordered = sorted(rollouts, key=lambda task: task.task_index)
        indices = [task.task_index for task in ordered]
        if indices != list(range(self.settings.meta_batch.tasks)):
            raise ValueError(
                f"an update needs tasks 0 to {self.settings.meta_batch.tasks - 1}, "
                f"each once; got {indices}"
            )
        for task in ordered:
            if task.version != self.version:
                raise ValueError(
                    f"task {task.task_index} was collected with version {task.version}, "
                    f"the learner is at version {self.version}"
                )
            if len(task.support) != self.settings.inner.steps:
                raise ValueError(
                    f"task {task.task_index} has {len(task.support)} support sets, "
                    f"inner.steps is {self.settings.inner.steps}"
                )
        return ordered

    def _learning_rate(self) -> float:
        """The outer rate of this update: constant, or a line from the first to the final one."""
        outer, last = self.settings.outer, self.settings.run.iterations - 1
        if outer.final_learning_rate is None or last <= 0:
            return outer.learning_rate
        done = min(self.version / last, 1.0)
        return outer.learning_rate + done * (outer.final_learning_rate - outer.learning_rate)

    def _make_optimiser(self) -> torch.optim.Adam:
        outer = self.settings.outer
        return torch.optim.Adam(
            self.parameters.values(), lr=outer.learning_rate, weight_decay=outer.weight_decay
        )

    def _leaves(self, values: Mapping[str, Tensor]) -> Parameters:
        return {
            name: value.to(self.device).clone().requires_grad_() for name, value in values.items()
        }


def _select(batch: MetaBatch, indices: Tensor) -> MetaBatch:
    selected: MetaBatch = torch.utils._pytree.tree_map(
        lambda tensor: tensor.index_select(0, indices), batch
    )
    return selected


def _observations_of(rollouts: Sequence[TaskRollouts]) -> NDArray[np.float32]:
    """All observations (n, D) of a meta-batch, those after an episode's end left out."""
    phases = [phase for task in rollouts for phase in (*task.support, task.query)]
    return np.concatenate([phase.observations[phase.mask] for phase in phases])


def _mean_return(phases: Sequence[Trajectories]) -> float:
    return float(np.mean([phase.returns for phase in phases]))
