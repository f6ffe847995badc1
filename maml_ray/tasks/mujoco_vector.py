"""Many MuJoCo simulations behind one ``gymnasium.vector.VectorEnv``.

One model, one ``MjData`` a simulation. Each simulation keeps its own solver warm start, which
``mujoco.rollout`` called step by step would drop: trajectories are therefore equal, to the last
bit, to those of single Gymnasium environments with the same seeds and actions. Everything but
the physics is vectorised over the batch.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.tasks.batch_env import BatchEnv, Bool, Float64

Float32 = NDArray[np.float32]
Act = Callable[[int, Float32], NDArray[Any]]
"""Actions (K, A) of a step, from its number and the observations (K, D) before it."""

_GIVEN_UP = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class MujocoVectorEnv(BatchEnv, ABC):
    """A batch of simulations of one Gymnasium MuJoCo environment.

    A subclass says, for the whole batch at once, what is observed and what a step is worth
    (:meth:`~BatchEnv.observe`, :meth:`~BatchEnv.assess`); the initial states come from the single
    environment's own ``reset_model``, so they cannot differ.

    Attributes:
        dt: seconds of a control step.
        positions: (K, nq) float64, ``qpos`` of all simulations.
        velocities: (K, nv) float64, ``qvel``.
        positions_before: (K, nq) float64, ``qpos`` before the step; good in ``assess`` alone.

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
        super().__init__(
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self.dt = env.dt
        self._env = env
        self._model = model = env.model
        self._simulations = [mujoco.MjData(model) for _ in range(num_envs)]
        # Views into the simulations, looked up once: attribute access on MjData is not free.
        self._controls = [simulation.ctrl for simulation in self._simulations]
        self._steps = [
            partial(mujoco.mj_step, model, simulation, env.frame_skip)
            for simulation in self._simulations
        ]
        self._position_views = [simulation.qpos for simulation in self._simulations]
        self._velocity_views = [simulation.qvel for simulation in self._simulations]
        self.positions: Float64 = np.zeros((num_envs, model.nq))
        self.positions_before: Float64 = np.zeros((num_envs, model.nq))
        self.velocities: Float64 = np.zeros((num_envs, model.nv))

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """The physics: ``frame_skip`` sub-steps of each simulation in ``indices``."""
        controls, steps = self._controls, self._steps
        for i in indices:
            controls[i][:] = actions[i]
            steps[i]()

    def read_states(self) -> None:
        """Copy all positions and velocities into two arrays, in two calls."""
        # The arrays of this step and the last change places: nothing is allocated.
        self.positions, self.positions_before = self.positions_before, self.positions
        np.concatenate(self._position_views, out=self.positions.reshape(-1))
        np.concatenate(self._velocity_views, out=self.velocities.reshape(-1))

    def play_states(self, act: Act, steps: int, first: int, observed: Float32) -> Float64:
        """``steps`` control steps of every simulation, and no more than must be between them.

        Args:
            act: who acts.
            steps: T.
            first: of the positions, the first that is observed; all velocities are.
            observed: (T + 1, K, D) observations, to be filled in.

        Returns:
            States (T + 1, K, nq + nv): positions and velocities before each step, and at the end.
        """
        views = [
            view
            for pair in zip(self._position_views, self._velocity_views, strict=True)
            for view in pair
        ]
        states = np.empty((steps + 1, self.num_envs, self._model.nq + self._model.nv))
        rows, seen = states.reshape(steps + 1, -1), states[:, :, first:]
        np.concatenate(views, out=rows[0])
        observed[0] = seen[0]
        for step in range(steps):
            # Once for all to the controls' type: casting row by row takes longer.
            actions = act(step, observed[step]).astype(np.float64)
            for control, action in zip(self._controls, actions, strict=True):
                control[:] = action
            for advance in self._steps:
                advance()
            np.concatenate(views, out=rows[step + 1])
            observed[step + 1] = seen[step + 1]
        self.read_states()
        self._elapsed += steps
        self._done = self._truncations()
        return states

    def broken(self) -> Bool:
        """(K,) which simulations MuJoCo has given up, since their reset, and begun anew by itself.

        It does so without a word where a state or an acceleration is no number or beyond all
        bounds; what is observed afterwards is finite, and of another episode.
        """
        return np.array(
            [any(data.warning[kind].number for kind in _GIVEN_UP) for data in self._simulations]
        )

    def reset_one(self, i: int) -> None:
        """The single environment resets whatever simulation it is lent."""
        env = self._env
        env.data = self._simulations[i]
        env.np_random = self.rngs[i]
        mujoco.mj_resetData(self._model, env.data)
        env.reset_model()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environment."""
        self._env.close()
