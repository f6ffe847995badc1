"""Build a meta-batch task by task, as its rollouts arrive.

A task's arrays are copied into the meta-batch's tensors as soon as they arrive: to a GPU by way of
pinned memory, which the device reads while the CPU goes on. On a CPU the behavior policies of a
task are also computed at once, while other tasks are still being collected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.backends.base import Backend
from maml_ray.backends.tensor_tree import concat, select_rows, slice_rows
from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.samples import context_gradient, make_samples
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories

Policies = tuple[tuple[ActionDistribution, ...], ActionDistribution]


class MetaBatchBuilder:
    """Collect the tasks of one meta-batch.

    Args:
        settings: of the run.
        backend: computes the behavior policies.
        parameters: those that collect the rollouts, on the learner's device.
        normalizer: of observations, as the rollouts' policies use it.
        staged: copy by way of pinned memory; None to do so if the device is not the CPU.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        parameters: Parameters,
        normalizer: Normalizer | None,
        *,
        staged: bool | None = None,
    ) -> None:
        self._backend, self._parameters, self._normalizer = backend, parameters, normalizer
        device = next(iter(parameters.values())).device
        self._staged = device.type != "cpu" if staged is None else staged
        self._by_context = settings.inner.parameters == "context"
        self._support = tuple(
            _empty_samples(settings, backend.spec, device)
            for _ in range(0 if self._by_context else settings.inner.steps)
        )
        size = settings.inner.context_size if self._by_context else 0
        self._context_gradient = torch.zeros(settings.meta_batch.tasks, size, device=device)
        self._query = _empty_samples(settings, backend.spec, device)
        self._policies: dict[int, Policies] = {}
        self._copied: set[int] = set()

    def add(self, task: TaskRollouts) -> None:
        """Copy a task ahead of the others, and compute what depends on it alone."""
        index = task.task_index
        self.copy_task(task)
        if self._backend.tasks_are_independent:
            data = slice_rows(self._data(), index, index + 1)
            self._policies[index] = self._backend.behavior_policies(self._parameters, *data)

    def build(self, rollouts: Sequence[TaskRollouts]) -> MetaBatch:
        """Return the meta-batch of ``rollouts``, one of each task in order, added before or not."""
        for task in rollouts:
            if task.task_index not in self._copied:
                self.copy_task(task)
        support_behavior, query_behavior = self._all_policies()
        advantage = torch.from_numpy(_task_advantages([task.query for task in rollouts]))
        return MetaBatch(
            self._support,
            support_behavior,
            self._query,
            query_behavior,
            advantage.to(self._query.weights.device),
            self._context_gradient,
        )

    def copy_task(self, task: TaskRollouts) -> None:
        """Copy a task's samples into the meta-batch, and compute nothing."""
        phases = [(self._query, task.query, task.query_advantages)]
        if self._by_context:
            gradients = [context_gradient(trajectories) for trajectories in task.support]
            if gradients:
                mean: NDArray[np.float32] = np.mean(gradients, axis=0)
                self._copy(mean, self._context_gradient[task.task_index])
        else:
            phases += zip(self._support, task.support, task.support_advantages, strict=True)
        for tensors, trajectories, advantages in phases:
            samples = make_samples(trajectories, advantages, self._normalizer)
            for tensor, array in zip(tensors, samples, strict=True):
                self._copy(array, tensor[task.task_index])
        self._copied.add(task.task_index)

    def _copy(self, array: NDArray[np.float32], target: Tensor) -> None:
        if not self._staged:
            target.numpy()[...] = array
            return
        # PyTorch reuses pinned memory once the device has read it.
        staging = torch.empty(target.shape, pin_memory=target.is_cuda)
        staging.numpy()[...] = array
        target.copy_(staging, non_blocking=True)

    def _data(self) -> tuple[tuple[Samples[Tensor], ...], Samples[Tensor], Tensor]:
        """Return what the behavior policies are computed from."""
        return self._support, self._query, self._context_gradient

    def _all_policies(self) -> Policies:
        if not self._policies:
            return self._backend.behavior_policies(self._parameters, *self._data())
        missing = sorted(self._copied - set(self._policies))
        if missing:
            data = select_rows(self._data(), torch.tensor(missing))
            policies = self._backend.behavior_policies(self._parameters, *data)
            for row, index in enumerate(missing):
                self._policies[index] = slice_rows(policies, row, row + 1)
        return concat([self._policies[index] for index in sorted(self._policies)])


def _empty_samples(settings: Settings, spec: PolicySpec, device: torch.device) -> Samples[Tensor]:
    """Return uninitialized tensors for one phase of N tasks."""
    tasks, episodes = settings.meta_batch.tasks, settings.meta_batch.episodes
    grid = (episodes, settings.task.horizon)
    samples = grid[0] * grid[1]

    def empty(*shape: int) -> Tensor:
        return torch.empty(tasks, *shape, device=device)

    return Samples(
        observations=empty(samples, spec.observation_size),
        actions=empty(samples, spec.recorded_action_size),
        log_probs=empty(*grid),
        advantages=empty(*grid),
        weights=empty(*grid),
    )


def _task_advantages(queries: Sequence[Trajectories]) -> NDArray[np.float32]:
    """Return mean query returns (N,), centered and divided by their standard deviation."""
    returns = np.array([query.returns.mean() for query in queries])
    standardized: NDArray[np.float32]
    standardized = ((returns - returns.mean()) / (returns.std() + 1e-8)).astype(np.float32)
    return standardized
