"""Define trajectories and the rollouts of a task as NumPy arrays, as actors send them.

Axes: ``K`` episodes, ``T`` steps, ``D`` observation size, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import RunningStatistics
from maml_ray.tasks.task import Task

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """K episodes of one policy on one task, collected in parallel.

    Attributes:
        observations: (K, T, D) before the action; float32, or float64 if float32 would lose how
            they vary and they are to be normalized.
        actions: (K, T, A) float32, as sampled (unclipped).
        log_probs: (K, T) float32, summed over action dimensions, under the sampling policy.
        rewards: (K, T) float32, zero after an episode's end.
        mask: (K, T) bool, False after an episode's end.
        final_observations: (K, D), after an episode's last step; None if unknown.
        terminated: (K,) bool, whether an episode ended before the time limit; None if unknown.
        info_means: by name, (K,) float32 mean of ``info[name]`` over the steps of an episode that
            report it; NaN if none does. Names that no episode reports are missing.
        discarded: number of failed episodes that were discarded and collected again.
        context_offsets: (K, C) float32, the context that each support episode acted with; None if
            all acted with the policy's own.

    Raises:
        ValueError: the arrays' shapes or dtypes are inconsistent.
    """

    observations: NDArray[np.floating]
    actions: Float32
    log_probs: Float32
    rewards: Float32
    mask: Bool
    final_observations: NDArray[np.floating] | None = None
    terminated: Bool | None = None
    info_means: Mapping[str, Float32] = field(default_factory=dict)
    discarded: int = 0
    context_offsets: Float32 | None = None

    def __post_init__(self) -> None:
        episodes_steps = self.rewards.shape
        if len(episodes_steps) != 2:
            raise ValueError(f"rewards must have shape (episodes, steps), got {episodes_steps}")
        for name in ("observations", "actions"):
            shape = getattr(self, name).shape
            if len(shape) != 3 or shape[:2] != episodes_steps:
                raise ValueError(f"{name} must have shape {(*episodes_steps, 'n')}, got {shape}")
        for name in ("log_probs", "mask"):
            shape = getattr(self, name).shape
            if shape != episodes_steps:
                raise ValueError(f"{name} must have shape {episodes_steps}, got {shape}")
        for name in ("observations", "actions", "log_probs", "rewards"):
            dtype = getattr(self, name).dtype
            if dtype != np.float32 and (name, dtype) != ("observations", np.float64):
                raise ValueError(f"{name} must be float32, got {dtype}")
        if self.mask.dtype != np.bool_:
            raise ValueError(f"mask must be bool, got {self.mask.dtype}")
        self._check_ends()

    def __repr__(self) -> str:
        return (
            f"Trajectories(episodes={self.episodes}, env_steps={self.env_steps}, "
            f"observation_size={self.observations.shape[2]}, "
            f"action_size={self.actions.shape[2]}, mean return {self.returns.mean():.1f})"
        )

    def _check_ends(self) -> None:
        episodes, size = self.rewards.shape[0], self.observations.shape[2]
        for name, shape in (
            ("final_observations", (episodes, size)),
            ("terminated", (episodes,)),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
        offsets = self.context_offsets
        if offsets is not None and (offsets.ndim != 2 or len(offsets) != episodes):
            raise ValueError(
                f"context_offsets must have shape ({episodes}, n), got {offsets.shape}"
            )
        for name, values in self.info_means.items():
            if values.shape != (episodes,):
                raise ValueError(f"{name} must have shape {(episodes,)}, got {values.shape}")

    @property
    def speeds(self) -> Float32 | None:
        """(K,) episode mean of ``info["speed"]`` in m/s; None if the environment reports none."""
        return self.info_means.get("speed")

    @property
    def episodes(self) -> int:
        """K, the number of episodes."""
        return int(self.rewards.shape[0])

    @property
    def env_steps(self) -> int:
        """Number of environment steps, without those after an episode's end."""
        return int(self.mask.sum())

    def outcomes(self) -> Trajectories:
        """Return these episodes without what they observed and did."""
        grid = self.rewards.shape
        return replace(
            self,
            observations=np.zeros((*grid, 0), np.float32),
            actions=np.zeros((*grid, 0), np.float32),
            log_probs=np.zeros(grid, np.float32),
            final_observations=None,
        )

    @property
    def returns(self) -> NDArray[np.float64]:
        """(K,) undiscounted return of each episode."""
        rewards = np.where(self.mask, self.rewards, np.float32(0.0))
        returns: NDArray[np.float64] = rewards.sum(axis=1, dtype=np.float64)
        return returns


@dataclass(frozen=True, eq=False)
class TaskRollouts:
    """Rollouts of one task of a meta-batch: one support set per inner step, one query set.

    Attributes:
        task: the task that was rolled out.
        task_index: its index in the meta-batch.
        version: version of the parameters that collected it.
        support: one element per inner step, each collected by the policy before that step.
        query: collected by the policy after the last inner step.
        support_advantages: (K, T) for each support set that was collected; none if only returns
            count.
        query_advantages: (K, T).
        obs_stats: statistics of the observations of all phases.
        failure: reason why the task cannot be learned from, or None. Phases that could not be
            collected then have no steps.
    """

    task: Task
    task_index: int
    version: int
    support: tuple[Trajectories, ...]
    query: Trajectories
    support_advantages: tuple[Float32, ...]
    query_advantages: Float32
    obs_stats: RunningStatistics
    failure: str | None = None

    def with_support_outcomes(self) -> TaskRollouts:
        """Return the rollouts without what support episodes observed and did."""
        return replace(self, support=tuple(phase.outcomes() for phase in self.support))

    @property
    def discarded(self) -> int:
        """Number of failed episodes in all phases, each discarded and collected again."""
        return sum(phase.discarded for phase in self.support) + self.query.discarded

    @property
    def env_steps(self) -> int:
        """Number of environment steps in all phases."""
        return sum(phase.env_steps for phase in self.support) + self.query.env_steps


def mean_info(phases: Sequence[Trajectories], name: str) -> float | None:
    """Return the mean of ``info[name]`` over the episodes that report it; None if none does."""
    reported = [phase.info_means[name] for phase in phases if name in phase.info_means]
    values = np.concatenate(reported) if reported else np.zeros(0)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def empty_trajectories(
    episodes: int,
    steps: int,
    observation_size: int,
    action_size: int,
    context_size: int | None = None,
) -> Trajectories:
    """Return trajectories with every step masked, to stand for a phase that was not collected."""
    offsets = None if context_size is None else np.zeros((episodes, context_size), np.float32)
    return Trajectories(
        observations=np.zeros((episodes, steps, observation_size), np.float32),
        actions=np.zeros((episodes, steps, action_size), np.float32),
        log_probs=np.zeros((episodes, steps), np.float32),
        rewards=np.zeros((episodes, steps), np.float32),
        mask=np.zeros((episodes, steps), np.bool_),
        context_offsets=offsets,
    )


def validate_rollouts(
    rollouts: Sequence[TaskRollouts], *, num_tasks: int, inner_steps: int, version: int
) -> list[TaskRollouts]:
    """Return the rollouts of a meta-batch in the order of their tasks.

    Raises:
        ValueError: they are not exactly one of each of ``num_tasks`` tasks, or one of them fails
            :func:`validate_task_rollouts`.
    """
    ordered = sorted(rollouts, key=lambda task: task.task_index)
    indices = [task.task_index for task in ordered]
    if indices != list(range(num_tasks)):
        raise ValueError(f"an update needs tasks 0 to {num_tasks - 1}, each once; got {indices}")
    for task in ordered:
        validate_task_rollouts(task, num_tasks=num_tasks, inner_steps=inner_steps, version=version)
    return ordered


def validate_task_rollouts(
    task: TaskRollouts, *, num_tasks: int, inner_steps: int, version: int
) -> None:
    """Check that a task's rollouts belong to a meta-batch.

    Raises:
        ValueError: the task index is not below ``num_tasks``, the rollouts were not collected with
            ``version`` of the parameters, or they do not have ``inner_steps`` support sets.
    """
    if not 0 <= task.task_index < num_tasks:
        raise ValueError(f"there is no task {task.task_index} of {num_tasks}")
    if task.version != version:
        raise ValueError(
            f"task {task.task_index} was collected with version {task.version}, "
            f"the learner asked for version {version}"
        )
    if len(task.support) != inner_steps:
        raise ValueError(
            f"task {task.task_index} has {len(task.support)} support sets, "
            f"inner.steps is {inner_steps}"
        )
