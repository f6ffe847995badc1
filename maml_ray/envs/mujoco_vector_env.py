"""Run K MuJoCo simulations behind one ``gymnasium.vector.VectorEnv``.

Everything except the physics is vectorized over the batch; in :meth:`MujocoVectorEnv.rollout`
rewards and ends of episodes are vectorized over time as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.envs.episode_log import EpisodeLog, Rollout
from maml_ray.envs.mujoco_kernel import StepArrays
from maml_ray.envs.mujoco_simulations import Field, Simulations
from maml_ray.envs.mujoco_state import Part, Selection, State
from maml_ray.envs.vector_env import BatchEnv, Bool, Float64, Transition
from maml_ray.kernels.policy_forward import Float32, PolicyKernel

LOOK_EVERY = 25
"""Steps between two looks at which episodes have ended; those are simulated no longer. What is
simulated beyond an end changes no result."""


class MujocoVectorEnv(BatchEnv, ABC):
    """A batch of simulations of one Gymnasium MuJoCo environment.

    A subclass says which parts of a state are observed (:meth:`observation_parts`), and defines
    rewards and ends as functions of states with any batch axes (:meth:`assess_step`). Initial
    states come from the single environment's ``reset_model``. A subclass that computes observations
    overrides :meth:`observe` instead; :meth:`rollout` then does nothing.

    Attributes:
        dt: seconds of a control step.

    Args:
        env: a single environment, unwrapped: its model, spaces and reset are used.
        num_envs: K, the number of simulations.
        max_episode_steps: truncate after that many steps, as Gymnasium's ``TimeLimit``.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default) or ``DISABLED``.
        contact_forces: compute contact forces after each step: ``mj_step`` leaves them out.

    Raises:
        ValueError: ``num_envs`` is below one, the autoreset mode is unsupported, or the parts are
            not of the observation's size.
    """

    def __init__(
        self,
        env: MujocoEnv,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        contact_forces: bool = False,
    ) -> None:
        super().__init__(
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self.dt = env.dt
        self._env = env
        self.simulations = Simulations(
            env.model,
            num_envs,
            env.frame_skip,
            self.tracked_fields(),
            contact_forces=contact_forces,
        )
        self._layout = self.simulations.layout
        self._selection = Selection.of(self.observation_parts(), self._layout)
        self._observes_parts = type(self).observe is MujocoVectorEnv.observe
        size, shape = len(self._selection.columns), env.observation_space.shape
        if self._observes_parts and (size,) != shape:
            raise ValueError(f"the observation has shape {shape}, its parts have {size} numbers")
        self._expects_ends = True
        self._row, self._row_before = np.zeros((2, num_envs, self._layout.size))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what a rollout would pass over: it does not call the final methods of a step."""
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if getattr(getattr(MujocoVectorEnv, name, None), "__final__", False):
                raise TypeError(
                    f"{cls.__name__} overrides {name}: whole episodes do not call it, define "
                    "assess_step, and observation_parts or observe"
                )

    def tracked_fields(self) -> Mapping[str, Field]:
        """Return fields of states by name, besides positions and velocities: none here."""
        return {}

    def observation_parts(self) -> Sequence[Part]:
        """Return the parts of a state that are observed, in their order."""
        return ()

    @abstractmethod
    def assess_step(self, before: State, after: State, actions: NDArray[Any]) -> Transition:
        """Return the outcome (...), in new arrays, of steps by ``actions`` (..., A)."""

    @property
    def state(self) -> State:
        """States (K, ...) after the last step or reset; later ones overwrite the arrays."""
        return self._layout.view(self._row)

    def observe(self) -> Float64:
        """Return observations (K, D) of the current states."""
        return self._selection.observe(self._row)

    @final
    def assess(self, actions: NDArray[Any]) -> Transition:
        """Return the outcome (K,) of the last step."""
        return self.assess_step(self._layout.view(self._row_before), self.state, actions)

    @final
    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """Run the physics of a control step of each simulation in ``indices``."""
        self.simulations.advance(indices, actions)

    @final
    def read_states(self) -> None:
        """Copy the states out of the simulations."""
        # Swap the arrays of this step and the last, so that nothing is allocated.
        self._row, self._row_before = self._row_before, self._row
        self.simulations.read(self._row)

    @final
    def rollout(
        self, policy: PolicyKernel, observations: Float32, actions: Float32
    ) -> Rollout | None:
        """Run T steps from the states of the last reset, or until all episodes have ended.

        Equals :meth:`step` to the last bit, without returning to Python between steps.

        Args:
            policy: acts, with its noise.
            observations: (T + 1, K, D), overwritten as far as episodes go.
            actions: (T, K, A) as recorded, overwritten likewise.

        Returns:
            None, with nothing done, if the time limit is shorter than T or observations are not
            parts of states.

        Raises:
            ValueError: the policy or an array is of another size.
        """
        steps, limit = len(actions), self._max_episode_steps
        if not self._observes_parts or (limit is not None and steps > limit):
            return None
        self._check_sizes(policy, observations, actions)
        rows = np.zeros((steps + 1, *self._row.shape))
        arrays = StepArrays(rows, observations, actions, np.zeros(actions.shape, np.float32))
        rows[0], observations[0] = self._row, self.observe()
        log = EpisodeLog(steps, self.num_envs)
        look_every, end = LOOK_EVERY if self._expects_ends else steps, 0
        while end < steps and log.alive.any():
            start, end = end, min(end + look_every, steps)
            noise = policy.noise[start:end]
            self._run_part(policy._replace(noise=noise), arrays.part(start, end), start, log)
        self._expects_ends = not log.alive.all()  # as in the last rollout
        self.simulations.read(self._row)
        outcome = log.result()
        self._elapsed += outcome.mask.sum(axis=0)
        self._done = outcome.terminated | self._truncations()
        return outcome

    def _run_part(
        self, policy: PolicyKernel, arrays: StepArrays, start: int, log: EpisodeLog
    ) -> None:
        """Run the steps of ``arrays`` of those episodes that have not ended, and log them."""
        running, simulations = np.flatnonzero(log.alive), self.simulations
        saved = simulations.save(running)
        simulations.run_steps(running, policy, self._selection, arrays)
        before, after = (self._layout.view(rows) for rows in (arrays.rows[:-1], arrays.rows[1:]))
        lasted = log.add(start, self.assess_step(before, after, arrays.env_actions))
        failing = simulations.failed() & ~log.failed
        for i in running[failing[running]]:
            until_end = arrays.env_actions[: lasted[i], i]
            # What has ended may have failed before or after that.
            is_whole = len(until_end) == len(arrays.env_actions)
            log.failed[i] = is_whole or simulations.replay_fails(saved[i], until_end)

    def _check_sizes(self, policy: PolicyKernel, observations: Float32, actions: Float32) -> None:
        """Validate shapes: a kernel would write beyond the end of an array that is too small."""
        inputs, outputs = policy.network.sizes[[0, -1]]
        size, controls = len(self._selection.columns), self._env.model.nu
        action_shape = (len(actions), self.num_envs, controls)
        rows = len(policy.network.shifts) or self.num_envs
        actual = (observations.shape, actions.shape, policy.noise.shape, inputs, outputs, rows)
        expected = (
            (len(actions) + 1, self.num_envs, size),
            action_shape,
            action_shape,
            size,
            controls,
            self.num_envs,
        )
        if actual != expected:
            raise ValueError(
                "observations, actions, noise, inputs, outputs and rows must be of sizes "
                f"{expected}, got {actual}"
            )

    def failed(self) -> Bool:
        """Return which simulations (K,) MuJoCo has reset by itself since their last reset."""
        return self.simulations.failed()

    def reset_one(self, i: int) -> None:
        """Reset simulation ``i`` by the single environment's ``reset_model``."""
        env = self._env
        env.data = self.simulations.data[i]
        env.np_random = self.rngs[i]
        mujoco.mj_resetData(env.model, env.data)
        env.reset_model()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environment."""
        self._env.close()
