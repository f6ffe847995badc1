"""Log the outcomes of episodes that run side by side, some steps at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.envs.vector_env import Bool, Float64, Transition


class Rollout(NamedTuple):
    """Outcome of T steps of K episodes.

    Attributes:
        rewards: (T, K), zero after an episode's end.
        mask: (T, K), False after an episode's end.
        terminated: (K,) which episodes ended before step T.
        infos: by name, (T, K); what they hold after an episode's end means nothing.
        failed: (K,) which simulations MuJoCo gave up before their episode ended.
    """

    rewards: Float64
    mask: Bool
    terminated: Bool
    infos: dict[str, NDArray[Any]]
    failed: Bool


class EpisodeLog:
    """Collect the outcomes of K episodes of at most T steps, some steps at a time.

    Attributes:
        alive: (K,) which episodes have not ended.
        failed: (K,) which simulations failed before their episode ended.
    """

    def __init__(self, steps: int, episodes: int) -> None:
        self.alive = np.ones(episodes, np.bool_)
        self.failed = np.zeros(episodes, np.bool_)
        self._rewards = np.zeros((steps, episodes))
        self._mask = np.zeros((steps, episodes), np.bool_)
        self._infos: dict[str, NDArray[Any]] = {}

    def add(self, start: int, transition: Transition) -> NDArray[np.int64]:
        """Add n steps from step ``start`` on, rewards, terminations and infos (n, K).

        Returns:
            (K,) how many of them each episode lasted.
        """
        ended = transition.terminations
        ended_before = np.zeros_like(ended)
        np.logical_or.accumulate(ended[:-1], axis=0, out=ended_before[1:])
        mask = self.alive & ~ended_before
        steps = slice(start, start + len(mask))
        self._mask[steps] = mask
        self._rewards[steps] = np.where(mask, transition.rewards, 0.0)
        for name, values in transition.infos.items():
            if name not in self._infos:
                self._infos[name] = np.zeros(self._mask.shape, values.dtype)
            self._infos[name][steps] = values
        self.alive &= ~ended.any(axis=0)
        lasted: NDArray[np.int64] = mask.sum(axis=0)
        return lasted

    def result(self) -> Rollout:
        """Return what was added."""
        return Rollout(self._rewards, self._mask, ~self.alive, self._infos, self.failed)
