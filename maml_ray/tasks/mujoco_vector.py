"""Many MuJoCo simulations behind one ``gymnasium.vector.VectorEnv``.

One model, one ``MjData`` a simulation. Each simulation keeps its own solver warm start, which
``mujoco.rollout`` called step by step would drop: trajectories are therefore equal, to the last
bit, to those of single Gymnasium environments with the same seeds and actions. Everything but
the physics is vectorised over the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Infos = dict[str, Any]


class Transition(NamedTuple):
    """What a step means: ``rewards`` (K,) float64, ``terminations`` (K,) bool, ``infos``."""

    rewards: Float64
    terminations: Bool
    infos: dict[str, NDArray[Any]]


class MujocoVectorEnv(VectorEnv[Float64, NDArray[Any], NDArray[Any]], ABC):
    """A batch of simulations of one Gymnasium MuJoCo environment.

    A subclass says, for the whole batch at once, what is observed and what a step is worth; the
    initial states come from the single environment's own ``reset_model``, so they cannot differ.

    Args:
        env: a single environment, unwrapped; it lends its model, spaces and reset.
        num_envs: K, the number of simulations.
        max_episode_steps: truncate after that many steps, as Gymnasium's ``TimeLimit``.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default) or ``DISABLED``.

    Raises:
        ValueError: ``num_envs`` is below one, or the autoreset mode is another.
    """

    def __init__(
        self,
        env: MujocoEnv,
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
        self.dt = env.dt
        self._env = env
        self._model = env.model
        self._frame_skip = env.frame_skip
        self._max_episode_steps = max_episode_steps
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)
        self._allocate_simulations()

    def _allocate_simulations(self) -> None:
        count, model = self.num_envs, self._model
        self._simulations = [mujoco.MjData(model) for _ in range(count)]
        # Views into the simulations, looked up once: attribute access on MjData is not free.
        self._pairs = [(simulation, simulation.ctrl) for simulation in self._simulations]
        self._position_views = [simulation.qpos for simulation in self._simulations]
        self._velocity_views = [simulation.qvel for simulation in self._simulations]
        self.positions: Float64 = np.empty((count, model.nq))
        self.velocities: Float64 = np.empty((count, model.nv))

    @abstractmethod
    def _observe(self) -> Float64:
        """Observations (K, D), a new array, of ``self.positions`` and ``self.velocities``."""

    @abstractmethod
    def _assess(self, positions_before: Float64, actions: NDArray[Any]) -> Transition:
        """What the step from ``positions_before`` (K, nq) by ``actions`` (K, A) is worth."""

    def _reset_infos(self) -> dict[str, NDArray[Any]]:
        """Infos (K,) of freshly reset simulations."""
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
        chosen = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            chosen = np.asarray(options["reset_mask"], dtype=np.bool_)
            if chosen.shape != (self.num_envs,):
                raise ValueError(
                    f"reset_mask must have shape ({self.num_envs},), got {chosen.shape}"
                )
        seeds: Sequence[int | None]
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must hold {self.num_envs} numbers, got {len(seeds)}")
        for i, value in enumerate(seeds):
            if chosen[i]:
                if value is not None:
                    self._rngs[i] = seeding.np_random(int(value))[0]
                self._reset_simulation(i)
        self._gather()
        return self._observe(), self._masked_infos(self._reset_infos(), chosen)

    def step(self, actions: NDArray[Any]) -> tuple[Float64, Float64, Bool, Bool, Infos]:
        """Advance every simulation by one control step with ``actions`` (K, A).

        Returns observations (K, D), rewards, terminations and truncations (K,), and infos.
        In ``NEXT_STEP`` mode a simulation whose episode has ended is reset instead, its action
        is ignored and its reward is zero.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"actions must have shape {self.action_space.shape}, got {actions.shape}"
            )
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and np.count_nonzero(self._done):
            return self._step_and_reset(actions)
        before = self.positions.copy()
        self._advance(range(self.num_envs), actions)
        self._gather()
        transition = self._assess(before, actions)
        self._elapsed += 1
        truncations = self._truncations()
        self._done = transition.terminations | truncations
        infos = self._infos_of_all(transition.infos)
        return self._observe(), transition.rewards, transition.terminations, truncations, infos

    def _step_and_reset(self, actions: NDArray[Any]) -> tuple[Float64, Float64, Bool, Bool, Infos]:
        """A step in which the simulations that are done start anew and the others move on."""
        resetting = self._done.copy()
        moving = ~resetting
        before = self.positions.copy()
        for i in np.flatnonzero(resetting):
            self._reset_simulation(int(i))
        self._advance([int(i) for i in np.flatnonzero(moving)], actions)
        self._gather()
        transition = self._assess(before, actions)
        self._elapsed[moving] += 1
        terminations = transition.terminations & moving
        truncations = self._truncations() & moving
        self._done = terminations | truncations
        rewards = np.where(moving, transition.rewards, 0.0)
        infos = self._masked_infos(transition.infos, moving) if moving.any() else {}
        for key, values in self._reset_infos().items():
            infos[key] = np.where(resetting, values, infos.get(key, 0.0))
            infos[f"_{key}"] = infos.get(f"_{key}", False) | resetting
        return self._observe(), rewards, terminations, truncations, infos

    def _advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """The physics: ``frame_skip`` sub-steps of each simulation in ``indices``."""
        mj_step, model, frame_skip = mujoco.mj_step, self._model, self._frame_skip
        pairs = self._pairs
        for i in indices:
            simulation, control = pairs[i]
            control[:] = actions[i]
            mj_step(model, simulation, frame_skip)

    def _gather(self) -> None:
        """Copy all positions and velocities into two arrays, in two calls."""
        np.concatenate(self._position_views, out=self.positions.reshape(-1))
        np.concatenate(self._velocity_views, out=self.velocities.reshape(-1))

    def _reset_simulation(self, i: int) -> None:
        # The single environment resets whatever simulation it is lent.
        env = self._env
        env.data = self._simulations[i]
        env.np_random = self._rngs[i]
        mujoco.mj_resetData(self._model, env.data)
        env.reset_model()
        self._elapsed[i] = 0
        self._done[i] = False

    def _truncations(self) -> Bool:
        if self._max_episode_steps is None:
            return np.zeros(self.num_envs, dtype=np.bool_)
        return self._elapsed >= self._max_episode_steps

    @staticmethod
    def _masked_infos(values: dict[str, NDArray[Any]], mask: Bool) -> Infos:
        """Infos as Gymnasium gives them: ``key``, zero where absent, and ``_key``, its mask."""
        infos: Infos = {}
        for key, value in values.items():
            infos[key] = np.where(mask, value, np.zeros_like(value))
            infos[f"_{key}"] = mask.copy()
        return infos

    def _infos_of_all(self, values: dict[str, NDArray[Any]]) -> Infos:
        """The same where every simulation has them, quicker: this is on every step's way."""
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        infos: Infos = {}
        for key, value in values.items():
            infos[key] = value
            infos["_" + key] = everywhere
        return infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environment."""
        self._env.close()
