"""Record the steps of a vector environment, to make trajectories of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer, as_float32
from maml_ray.envs.episode_log import Rollout
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.step_reader import InfoNotANumber, final_observations, read_info
from maml_ray.rollouts.trajectories import Trajectories

_SPEED = "speed"  # of info: always recorded, if it is a number


class RolloutBuffer:
    """Arrays of the steps collected so far, time first so that a step writes contiguous memory.

    Attributes:
        all_observations: (T + 1, K, D), the observation after the last step included.
        observations: (T, K, D), a view.
        last_observation: (K, D), a view.
        actions: (T, K, A) as recorded.
        alive: (K,) which episodes have not ended.
        ending: (K,) which episodes ended in the last step recorded.
        failed: (K,) which simulations failed before their episode ended.
    """

    def __init__(
        self,
        spec: PolicySpec,
        horizon: int,
        episodes: int,
        dtype: Any = np.float32,
        info_metrics: Sequence[str] = (),
    ) -> None:
        size = spec.observation_size
        self.all_observations = np.zeros((horizon + 1, episodes, size), dtype)
        self.observations = self.all_observations[:-1]
        self.last_observation = self.all_observations[-1]
        self.actions = np.zeros((horizon, episodes, spec.recorded_action_size), dtype=np.float32)
        self.alive = np.ones(episodes, dtype=np.bool_)
        self.ending = np.zeros(episodes, dtype=np.bool_)
        self.failed = np.zeros(episodes, dtype=np.bool_)
        self._rewards = np.zeros((horizon, episodes), dtype=np.float32)
        self._mask = np.zeros((horizon, episodes), dtype=np.bool_)
        self._terminated = np.zeros(episodes, dtype=np.bool_)
        self._final_observations = np.zeros((episodes, size), dtype)
        self._asked = frozenset(info_metrics)
        self._infos: dict[str, _InfoSteps] = {
            name: _InfoSteps(horizon, episodes)
            for name in {_SPEED: None, **dict.fromkeys(info_metrics)}
        }

    def add_step(
        self,
        step: int,
        transition: tuple[Any, Any, Any, Any, dict[str, Any]],
        mode: AutoresetMode | None,
    ) -> NDArray[np.bool_] | None:
        """Record what ``env.step`` returned.

        Returns:
            (K,) which environments say that an episode has ended, also one after those that are
            recorded; None if none does.
        """
        observation, reward, terminated, truncated, infos = transition
        self._rewards[step] = np.reshape(reward, -1)
        self._mask[step] = self.alive
        ended: NDArray[np.bool_] = terminated | truncated
        any_ended = bool(np.count_nonzero(ended))  # several times faster than any()
        self.ending = self.alive & ended
        if infos:
            self._add_infos(step, infos, mode)
        if not any_ended:
            return None
        if self.ending.any():
            final = final_observations(observation, infos, self.ending, mode)
            self._final_observations[self.ending] = final
        self._terminated |= self.ending & terminated
        self.alive &= ~ended
        return ended

    def _add_infos(self, step: int, infos: Mapping[str, Any], mode: AutoresetMode | None) -> None:
        for name, steps in self._infos.items():
            try:
                column = read_info(infos, name, self.ending, mode)
            except InfoNotANumber:
                if name in self._asked:
                    raise
                continue
            if column is not None:
                steps.reported[step] = column.reported & self._mask[step]
                steps.values[step] = np.where(steps.reported[step], column.values, 0.0)

    def add_rollout(self, rollout: Rollout) -> None:
        """Record whole episodes, whose observations and actions are in the arrays already."""
        self._rewards[:], self._mask[:] = rollout.rewards, rollout.mask
        lengths = rollout.mask.sum(axis=0)
        self._final_observations[:] = self.all_observations[lengths, range(len(lengths))]
        self._terminated[:], self.alive[:] = rollout.terminated, ~rollout.terminated
        self.failed[:] = rollout.failed
        for name, steps in self._infos.items():
            if name in rollout.infos:
                steps.add_all(rollout.infos[name], rollout.mask)

    def to_trajectories(
        self, normalizer: Normalizer | None, log_probs: NDArray[np.float32]
    ) -> Trajectories:
        """Return the trajectories; ``last_observation`` is the one after the last step.

        Args:
            normalizer: of the policy; decides whether float64 observations stay so.
            log_probs: (T, K) of the actions; zeroed after an episode's end.
        """
        self._final_observations[self.alive] = self.last_observation[self.alive]
        if not self._mask.all():
            # Entries after an episode's end may be NaN, which a zero weight would not remove.
            for array in (self._rewards, self.observations, self.actions, log_probs):
                array[~self._mask] = 0.0
        dtype = as_float32(self.observations[self._mask], normalizer).dtype
        return Trajectories(
            observations=_episodes_first(self.observations.astype(dtype, copy=False)),
            actions=_episodes_first(self.actions),
            log_probs=_episodes_first(log_probs),
            rewards=_episodes_first(self._rewards),
            mask=_episodes_first(self._mask),
            final_observations=self._final_observations.astype(dtype, copy=False),
            terminated=self._terminated,
            info_means={
                name: steps.means() for name, steps in self._infos.items() if steps.reported.any()
            },
        )


class _InfoSteps:
    """Values (T, K) of one info, zero where it is not reported, and where it is."""

    def __init__(self, horizon: int, episodes: int) -> None:
        self.values = np.zeros((horizon, episodes), np.float32)
        self.reported = np.zeros((horizon, episodes), np.bool_)

    def add_all(self, values: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        """Record ``values`` (T, K) where ``mask`` is True and they are finite."""
        self.reported[:] = mask & np.isfinite(values)
        self.values[:] = np.where(self.reported, values, 0.0)

    def means(self) -> NDArray[np.float32]:
        """Return the mean (K,) over the steps that report it; NaN if none does."""
        means: NDArray[np.float32] = self.values.sum(axis=0) / self.reported.sum(
            axis=0, dtype=np.float32
        )
        return means


def _episodes_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.swapaxes(0, 1))
