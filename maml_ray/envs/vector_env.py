"""Run K simulations of any kind behind one ``gymnasium.vector.VectorEnv``.

The base class implements seeds, time limits, partial resets, autoreset and Gymnasium's infos. A
subclass implements initial states, dynamics, observations and rewards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Infos = dict[str, Any]


class Transition(NamedTuple):
    """Outcome of a step: ``rewards`` (K,) float64, ``terminations`` (K,) bool, ``infos``."""

    rewards: Float64
    terminations: Bool
    infos: dict[str, NDArray[Any]]


class NumbersOnly(gym.Wrapper[Any, Any, Any, Any]):
    """Reduce what an environment returns to what any batch can hold: numbers.

    Gymnasium's batches make an array of each entry of the infos, and fail if its shape changes.
    Entries of ``info`` that are single numbers become floats, all others are dropped; a reward may
    be a number, or an array or a list of one.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, and keep the numbers of the infos."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _numbers(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and keep the numbers of the infos."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not isinstance(reward, float):
            reward = float(np.asarray(reward, np.float64).reshape(()))
        return observation, reward, terminated, truncated, _numbers(info)


def _numbers(info: Mapping[str, Any] | None) -> dict[str, float]:
    return {
        key: number
        for key, value in (info or {}).items()
        if isinstance(key, str) and (number := _number(value)) is not None
    }


def _number(value: Any) -> float | None:
    """Return ``value`` as a float if it is a number or an array of shape ()."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    is_number = isinstance(value, float | np.integer | np.floating | np.bool_)
    is_number |= isinstance(value, int) and abs(value) < 2**1023  # a larger one has no float
    return float(value) if is_number else None


class BatchEnv(VectorEnv[Float64, NDArray[Any], NDArray[Any]], ABC):
    """Base class of K simulations of one environment that are stepped together.

    A subclass creates its simulations, calls this constructor, and implements :meth:`reset_one`,
    :meth:`advance`, :meth:`observe` and :meth:`assess`. Simulation ``i`` draws from ``rngs[i]`` as
    the single environment draws from its ``np_random``, so that equal seeds give equal states.

    Args:
        env: a single environment, for its spaces and metadata.
        num_envs: K, the number of simulations.
        max_episode_steps: truncate after that many steps, as Gymnasium's ``TimeLimit``.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default) or ``DISABLED``.

    Raises:
        ValueError: ``num_envs`` is below one, or the autoreset mode is unsupported.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode must be NEXT_STEP or DISABLED, got SAME_STEP")
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._max_episode_steps = max_episode_steps
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)
        self._all_true = np.ones(num_envs, dtype=np.bool_)

    @abstractmethod
    def reset_one(self, i: int) -> None:
        """Put simulation ``i`` into an initial state, drawing only from ``rngs[i]``."""

    @abstractmethod
    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """Step the simulations in ``indices`` with their rows of ``actions``."""

    def read_states(self) -> None:
        """Cache states after resets and steps, before :meth:`observe` and :meth:`assess`."""

    @abstractmethod
    def observe(self) -> Float64:
        """Return observations (K, D) of the current states in a new array."""

    @abstractmethod
    def assess(self, actions: NDArray[Any]) -> Transition:
        """Return the outcome in new arrays of the step by ``actions`` (K, A) to the current states.

        Rows of simulations that were reset in this step are ignored.
        """

    def reset_infos(self) -> dict[str, NDArray[Any]]:
        """Return infos (K,) of simulations after a reset."""
        return {}

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Float64, Infos]:
        """Reset all simulations, or those of ``options["reset_mask"]`` (K,) bool.

        A single integer ``seed`` seeds simulation ``i`` with ``seed + i``, as Gymnasium does.
        """
        mask = self._reset_mask(options)
        seeds: Sequence[int | None]
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must have {self.num_envs} numbers, got {len(seeds)}")
        for i, value in enumerate(seeds):
            if mask[i]:
                if value is not None:
                    self.rngs[i] = seeding.np_random(int(value))[0]
                self._begin_episode(i)
        self.read_states()
        return self.observe(), _masked_infos(self.reset_infos(), mask)

    @final
    def step(self, actions: NDArray[Any]) -> tuple[Float64, Float64, Bool, Bool, Infos]:
        """Advance each simulation by one control step with ``actions`` (K, A).

        In ``NEXT_STEP`` mode a simulation whose episode has ended is reset instead: its action is
        ignored and its reward is zero.

        Returns:
            Observations (K, D), rewards, terminations and truncations (K,), and infos.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"actions must have shape {self.action_space.shape}, got {actions.shape}"
            )
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and np.count_nonzero(self._done):
            return self._step_and_reset(actions)
        self.advance(range(self.num_envs), actions)
        self.read_states()
        transition = self.assess(actions)
        self._elapsed += 1
        truncations = self._truncations()
        self._done = transition.terminations | truncations
        infos = self._unmasked_infos(transition.infos)
        return self.observe(), transition.rewards, transition.terminations, truncations, infos

    def _step_and_reset(self, actions: NDArray[Any]) -> tuple[Float64, Float64, Bool, Bool, Infos]:
        """Reset the simulations that are done and step the others."""
        resetting = self._done.copy()
        moving = ~resetting
        for i in np.flatnonzero(resetting):
            self._begin_episode(int(i))
        self.advance([int(i) for i in np.flatnonzero(moving)], actions)
        self.read_states()
        transition = self.assess(actions)
        self._elapsed[moving] += 1
        terminations = transition.terminations & moving
        truncations = self._truncations() & moving
        self._done = terminations | truncations
        rewards = np.where(moving, transition.rewards, 0.0)
        infos = _masked_infos(transition.infos, moving) if moving.any() else {}
        for key, values in self.reset_infos().items():
            infos[key] = np.where(resetting, values, infos.get(key, 0.0))
            infos[f"_{key}"] = infos.get(f"_{key}", False) | resetting
        return self.observe(), rewards, terminations, truncations, infos

    def _begin_episode(self, i: int) -> None:
        self.reset_one(i)
        self._elapsed[i] = 0
        self._done[i] = False

    def _reset_mask(self, options: Mapping[str, Any] | None) -> Bool:
        """Return which simulations (K,) to reset."""
        if options is None or "reset_mask" not in options:
            return self._all_true.copy()
        mask = np.asarray(options["reset_mask"], dtype=np.bool_)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), got {mask.shape}")
        return mask

    def _truncations(self) -> Bool:
        if self._max_episode_steps is None:
            return np.zeros(self.num_envs, dtype=np.bool_)
        return self._elapsed >= self._max_episode_steps

    def _unmasked_infos(self, values: dict[str, NDArray[Any]]) -> Infos:
        """Return infos that all simulations have, faster than :func:`_masked_infos`."""
        mask = self._all_true.copy()
        infos: Infos = {}
        for key, value in values.items():
            infos[key] = value
            infos["_" + key] = mask
        return infos


def _masked_infos(values: dict[str, NDArray[Any]], mask: Bool) -> Infos:
    """Return infos in Gymnasium's format: ``key``, zero if absent, and its mask ``_key``."""
    infos: Infos = {}
    for key, value in values.items():
        infos[key] = np.where(mask, value, np.zeros_like(value))
        infos[f"_{key}"] = mask.copy()
    return infos
