"""Run K MuJoCo simulations behind one ``gymnasium.vector.VectorEnv``.

Simulations share a model and have an ``MjData`` each. Each keeps its solver warm start, which
``mujoco.rollout`` called step by step would drop: trajectories therefore equal, to the last bit,
those of single Gymnasium environments with the same seeds and actions. Everything except the
physics is vectorized over the batch.
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
from maml_ray.kernels.policy_forward import Float32, PolicyKernel

_RESET_WARNINGS = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class MujocoVectorEnv(BatchEnv, ABC):
    """A batch of simulations of one Gymnasium MuJoCo environment.

    A subclass defines observations and rewards for the whole batch (:meth:`~BatchEnv.observe`,
    :meth:`~BatchEnv.assess`). Initial states come from the single environment's ``reset_model``.

    Attributes:
        dt: seconds of a control step.
        positions: (K, nq) float64, ``qpos`` of all simulations.
        velocities: (K, nv) float64, ``qvel``.
        positions_before: (K, nq) float64, ``qpos`` before the step; valid in ``assess`` only.

    Args:
        env: a single environment, unwrapped: its model, spaces and reset are used.
        num_envs: K, the number of simulations.
        max_episode_steps: truncate after that many steps, as Gymnasium's ``TimeLimit``.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default) or ``DISABLED``.

    Raises:
        ValueError: ``num_envs`` is below one, or the autoreset mode is unsupported.
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
        # Views into the simulations, created once: attribute access on MjData is slow.
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
        """Run ``frame_skip`` physics steps of each simulation in ``indices``."""
        controls, steps = self._controls, self._steps
        for i in indices:
            controls[i][:] = actions[i]
            steps[i]()

    def read_states(self) -> None:
        """Copy all positions and velocities into two arrays."""
        # Swap the arrays of this step and the last, so that nothing is allocated.
        self.positions, self.positions_before = self.positions_before, self.positions
        np.concatenate(self._position_views, out=self.positions.reshape(-1))
        np.concatenate(self._velocity_views, out=self.velocities.reshape(-1))

    def rollout_states(
        self, policy: PolicyKernel, first: int, observations: Float32, actions: Float32
    ) -> Float64:
        """Run T control steps of all simulations without returning to Python.

        Args:
            policy: acts, with its noise.
            first: index of the first position that is observed; all velocities are.
            observations: (T + 1, K, D), overwritten.
            actions: (T, K, A) as recorded, overwritten.

        Returns:
            (T + 1, K, nq + nv) positions and velocities before each step and at the end.

        Raises:
            ValueError: the policy or an array is of another size.
        """
        model, steps = self._model, len(actions)
        states = np.empty((steps + 1, self.num_envs, model.nq + model.nv))
        self._check_sizes(policy, states[:, :, first:], observations, actions)
        pointers = mujoco_kernel.get_pointers(model, self._simulations, self._env.frame_skip)
        if pointers is None:
            self._rollout_in_python(policy, states, states[:, :, first:], observations, actions)
        else:
            scratch = policy.network.make_scratch(self.num_envs)
            mujoco_kernel.rollout(pointers, policy, scratch, first, states, observations, actions)
        self.read_states()
        self._elapsed += steps
        self._done = self._truncations()
        return states

    def _check_sizes(
        self,
        policy: PolicyKernel,
        observed_states: Float64,
        observations: Float32,
        actions: Float32,
    ) -> None:
        """Validate shapes: a kernel would write beyond the end of an array that is too small."""
        inputs, outputs = policy.network.sizes[[0, -1]]
        action_shape = (len(observed_states) - 1, self.num_envs, self._model.nu)
        rows = len(policy.network.shifts) or self.num_envs
        actual = (observations.shape, actions.shape, policy.noise.shape, inputs, outputs, rows)
        expected = (
            observed_states.shape,
            action_shape,
            action_shape,
            observed_states.shape[-1],
            action_shape[-1],
            self.num_envs,
        )
        if actual != expected:
            raise ValueError(
                "observations, actions, noise, inputs, outputs and rows must be of sizes "
                f"{expected}, got {actual}"
            )

    def _rollout_in_python(
        self,
        policy: PolicyKernel,
        states: Float64,
        observed_states: Float64,
        observations: Float32,
        actions: Float32,
    ) -> None:
        """Run the steps one by one, if the address of MuJoCo's step function is unknown."""
        views = [
            view
            for pair in zip(self._position_views, self._velocity_views, strict=True)
            for view in pair
        ]
        rows = states.reshape(len(states), -1)
        np.concatenate(views, out=rows[0])
        observations[0] = observed_states[0]
        for step, noise in enumerate(policy.noise):
            actions[step] = policy.network.forward(observations[step]) + noise
            # One cast of the whole batch to the controls' type: casting row by row is slower.
            controls = policy.action_map.apply(actions[step]).astype(np.float64)
            self.advance(range(self.num_envs), controls)
            np.concatenate(views, out=rows[step + 1])
            observations[step + 1] = observed_states[step + 1]

    def failed(self) -> Bool:
        """Return which simulations (K,) MuJoCo has reset by itself since their last reset.

        It does so silently if a state or an acceleration is NaN or beyond its limit; observations
        after that are finite and belong to another episode.
        """
        return np.array(
            [
                any(data.warning[warning].number for warning in _RESET_WARNINGS)
                for data in self._simulations
            ]
        )

    def reset_one(self, i: int) -> None:
        """Reset simulation ``i`` by the single environment's ``reset_model``."""
        env = self._env
        env.data = self._simulations[i]
        env.np_random = self.rngs[i]
        mujoco.mj_resetData(self._model, env.data)
        env.reset_model()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environment."""
        self._env.close()
