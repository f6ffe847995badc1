"""What actors send: trajectories, as plain numpy arrays with fixed axes.

Axes: ``K`` episodes, ``T`` steps, ``D`` observation size, ``A`` action size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import RunningStatistics
from maml_ray.tasks.task import Task

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """K episodes of one policy on one task, collected side by side.

    Attributes:
        observations: (K, T, D) float32, before the action.
        actions: (K, T, A) float32, as sampled (unclipped).
        log_probs: (K, T) float32, summed over action dimensions, under the sampling policy.
        rewards: (K, T) float32, zero after an episode's end.
        mask: (K, T) bool, False after an episode's end.
        final_observations: (K, D) float32, after an episode's last step; None if not known.
        terminated: (K,) bool, whether an episode ended by itself, and not by the time limit; None
            if not known.
        speeds: (K,) float32, mean over an episode of what the environment calls its ``speed``, in
            m/s; None where it tells none.
        discarded: how many broken episodes were discarded and drawn again to get these.

    Raises:
        ValueError: the arrays' shapes or dtypes do not fit together.
    """

    observations: Float32
    actions: Float32
    log_probs: Float32
    rewards: Float32
    mask: Bool
    final_observations: Float32 | None = None
    terminated: Bool | None = None
    speeds: Float32 | None = None
    discarded: int = 0

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
            if getattr(self, name).dtype != np.float32:
                raise ValueError(f"{name} must be float32, got {getattr(self, name).dtype}")
        if self.mask.dtype != np.bool_:
            raise ValueError(f"mask must be bool, got {self.mask.dtype}")
        self._check_ends()

    def _check_ends(self) -> None:
        episodes, size = self.rewards.shape[0], self.observations.shape[2]
        for name, shape in (
            ("final_observations", (episodes, size)),
            ("terminated", (episodes,)),
            ("speeds", (episodes,)),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {value.shape}")

    @property
    def episodes(self) -> int:
        """K, the number of episodes."""
        return int(self.rewards.shape[0])

    @property
    def env_steps(self) -> int:
        """Number of environment steps taken, those after an episode's end left out."""
        return int(self.mask.sum())

    @property
    def returns(self) -> NDArray[np.float64]:
        """(K,) undiscounted return of each episode."""
        taken = np.where(self.mask, self.rewards, np.float32(0.0))
        returns: NDArray[np.float64] = taken.sum(axis=1, dtype=np.float64)
        return returns


@dataclass(frozen=True, eq=False)
class TaskRollouts:
    """What one task of a meta-iteration yields: one support set per inner step, one query set.

    Attributes:
        task: the task that was rolled out.
        task_index: its place in the meta-batch.
        version: the version of the parameters that it was collected with.
        support: one element per inner step, each collected by the policy before that step.
        query: collected by the policy after the last inner step.
        support_advantages: (K, T) of each support set.
        query_advantages: (K, T) of the query set.
        observed: statistics of the observations of all phases.
        broken: why nothing can be learned from this task, in a sentence; None where it can. Phases
            that could not be collected then hold no steps.
    """

    task: Task
    task_index: int
    version: int
    support: tuple[Trajectories, ...]
    query: Trajectories
    support_advantages: tuple[Float32, ...]
    query_advantages: Float32
    observed: RunningStatistics
    broken: str | None = None

    @property
    def discarded(self) -> int:
        """Broken episodes in all phases together, each discarded and drawn again."""
        return sum(phase.discarded for phase in self.support) + self.query.discarded

    @property
    def env_steps(self) -> int:
        """Environment steps in all phases together."""
        return sum(phase.env_steps for phase in self.support) + self.query.env_steps


def empty_trajectories(
    episodes: int, steps: int, observation_size: int, actions: int
) -> Trajectories:
    """Episodes of no steps: in the place of what could not be collected.

    Args:
        episodes: K.
        steps: T; all of them are masked.
        observation_size: D.
        actions: A, or 1 for discrete ones.
    """
    return Trajectories(
        observations=np.zeros((episodes, steps, observation_size), np.float32),
        actions=np.zeros((episodes, steps, actions), np.float32),
        log_probs=np.zeros((episodes, steps), np.float32),
        rewards=np.zeros((episodes, steps), np.float32),
        mask=np.zeros((episodes, steps), np.bool_),
    )
