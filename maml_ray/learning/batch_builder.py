"""A meta-batch put together task by task, as its rollouts come.

What a task brings is laid in its place of the meta-batch's tensors at once: on a GPU by way of
pinned memory, which the device reads by itself while the CPU goes on. So what has come is copied,
and on a CPU seen through the policies that collected it, while other tasks are under way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.backends.collectors import policies_at
from maml_ray.backends.compiled import goes_by_loops
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.backends.tensor_tree import joined, selected, sliced
from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import ActionDistribution, Parameters
from maml_ray.maml.losses import Samples
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.samples import sample_arrays
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories

Policies = tuple[tuple[ActionDistribution, ...], ActionDistribution]


class Assembly:
    """The places of N tasks, and who has taken them so far.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        parameters: those that the rollouts were collected with, on the learner's device.
        normalizer: likewise.
        passes: in which tasks go through the arithmetic.
        staged: whether to go by way of memory that the device can read; None: as it needs.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        parameters: Parameters,
        normalizer: Normalizer | None,
        passes: Passes = WHOLE,
        *,
        staged: bool | None = None,
    ) -> None:
        self._told = (settings, spec, parameters)
        self._normalizer, self._passes = normalizer, passes
        device = next(iter(parameters.values())).device
        self._staged = device.type != "cpu" if staged is None else staged
        # By the loops each task goes alone, to the same bits whoever goes beside it.
        self._task_by_task = goes_by_loops(settings, spec, device)
        self._support = tuple(_places(settings, spec, device) for _ in range(settings.inner.steps))
        self._query = _places(settings, spec, device)
        self._policies: dict[int, Policies] = {}
        self._taken: set[int] = set()

    def take(self, task: TaskRollouts) -> None:
        """Lay ``task`` in its place, ahead of the others, and see to what it alone decides."""
        place = task.task_index
        self.lay(task)
        if self._task_by_task:
            alone = sliced((self._support, self._query), place, place + 1)
            self._policies[place] = policies_at(*self._told, *alone)

    def finished(self, rollouts: Sequence[TaskRollouts]) -> MetaBatch:
        """The meta-batch of ``rollouts``, one of each task in order, taken before or not."""
        for task in rollouts:
            if task.task_index not in self._taken:
                self.lay(task)
        collectors, query_collector = self._all_policies()
        credit = _credit([task.query for task in rollouts])
        on_device = torch.from_numpy(credit).to(self._query.weights.device)
        return MetaBatch(self._support, collectors, self._query, query_collector, on_device)

    def lay(self, task: TaskRollouts) -> None:
        """Copy ``task`` to its place, and compute nothing."""
        phases = zip(
            (*self._support, self._query),
            (*task.support, task.query),
            (*task.support_advantages, task.query_advantages),
            strict=True,
        )
        for places, trajectories, advantages in phases:
            arrays = sample_arrays(trajectories, advantages, self._normalizer)
            for place, array in zip(places, arrays, strict=True):
                self._copy(array, place[task.task_index])
        self._taken.add(task.task_index)

    def _copy(self, array: NDArray[np.float32], place: Tensor) -> None:
        if not self._staged:
            place.numpy()[...] = array
            return
        # PyTorch keeps pinned memory for the next, once the device has read it.
        staging = torch.empty(place.shape, pin_memory=place.is_cuda)
        staging.numpy()[...] = array
        place.copy_(staging, non_blocking=True)

    def _all_policies(self) -> Policies:
        if not self._policies:
            return policies_at(*self._told, self._support, self._query, self._passes)
        late = sorted(self._taken - set(self._policies))
        if late:
            phases = selected((self._support, self._query), torch.tensor(late))
            found = policies_at(*self._told, *phases, self._passes)
            for row, place in enumerate(late):
                self._policies[place] = sliced(found, row, row + 1)
        return joined([self._policies[place] for place in sorted(self._policies)])


def _places(settings: Settings, spec: PolicySpec, device: torch.device) -> Samples:
    """Room for one phase of N tasks."""
    tasks, episodes = settings.meta_batch.tasks, settings.meta_batch.episodes
    grid = (episodes, settings.task.horizon)
    samples = grid[0] * grid[1]

    def room(*shape: int) -> Tensor:
        return torch.empty(tasks, *shape, device=device)

    return Samples(
        observations=room(samples, spec.observation_size),
        actions=room(samples, spec.recorded_action_size),
        log_probs=room(*grid),
        advantages=room(*grid),
        weights=room(*grid),
    )


def _credit(queries: Sequence[Trajectories]) -> NDArray[np.float32]:
    """Mean returns of the query sets (N,), centered and divided by their standard deviation."""
    returns = np.array([query.returns.mean() for query in queries])
    credit: NDArray[np.float32]
    credit = ((returns - returns.mean()) / (returns.std() + 1e-8)).astype(np.float32)
    return credit
