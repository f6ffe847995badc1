"""Many MuJoCo simulations behind one ``gymnasium.vector.VectorEnv``.

One model, one ``MjData`` a simulation. Each simulation keeps its own solver warm start, which
``mujoco.rollout`` called step by step would drop: trajectories are therefore equal, to the last
bit, to those of single Gymnasium environments with the same seeds and actions. Everything but
the physics is vectorized over the batch.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.envs import mujoco_kernel
from maml_ray.envs.vector_env import BatchEnv, Bool, Float64
from maml_ray.kernels.policy_forward import Float32, PolicyKernel, scaled

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

    def play_states(
        self, player: PolicyKernel, first: int, observed: Float32, actions: Float32
    ) -> Float64:
        """Control steps of every simulation, and no more than must be between them.

        Args:
            player: who acts.
            first: of the positions, the first that is observed; all velocities are.
            observed: (T + 1, K, D) observations, to be filled in.
            actions: (T, K, A) actions as recorded, likewise.

        Returns:
            States (T + 1, K, nq + nv): positions and velocities before each step, and at the end.

        Raises:
            ValueError: the player or an array is of other sizes.
        """
        model, steps = self._model, len(actions)
        states = np.empty((steps + 1, self.num_envs, model.nq + model.nv))
        self._check_sizes(player, states[:, :, first:], observed, actions)
        located = mujoco_kernel.located(model, self._simulations, self._env.frame_skip)
        if located is None:
            self._play_by_steps(player, states, states[:, :, first:], observed, actions)
        else:
            rooms = player.perceptron.rooms(self.num_envs)
            mujoco_kernel.play(located, player, rooms, first, states, observed, actions)
        self.read_states()
        self._elapsed += steps
        self._done = self._truncations()
        return states

    def _check_sizes(
        self, player: PolicyKernel, seen: Float64, observed: Float32, actions: Float32
    ) -> None:
        """A compiled loop would write beyond an array that is too small."""
        inputs, outputs = player.perceptron.sizes[[0, -1]]
        acted = (len(seen) - 1, self.num_envs, self._model.nu)
        found = (observed.shape, actions.shape, player.deviations.shape, inputs, outputs)
        wanted = (seen.shape, acted, acted, seen.shape[-1], acted[-1])
        if found != wanted:
            raise ValueError(
                "observations, actions, noise, inputs and outputs must be of sizes "
                f"{wanted}, got {found}"
            )

    def _play_by_steps(
        self,
        player: PolicyKernel,
        states: Float64,
        seen: Float64,
        observed: Float32,
        actions: Float32,
    ) -> None:
        """The same where MuJoCo's library is not to be found: a step after the other from here."""
        views = [
            view
            for pair in zip(self._position_views, self._velocity_views, strict=True)
            for view in pair
        ]
        rows = states.reshape(len(states), -1)
        np.concatenate(views, out=rows[0])
        observed[0] = seen[0]
        for step, deviations in enumerate(player.deviations):
            actions[step] = player.perceptron.outputs(observed[step]) + deviations
            # Once for all to the controls' type: casting row by row takes longer.
            given = scaled(actions[step], float(player.scale)).astype(np.float64)
            self.advance(range(self.num_envs), given)
            np.concatenate(views, out=rows[step + 1])
            observed[step + 1] = seen[step + 1]

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
