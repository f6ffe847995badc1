"""The half-cheetah that is to run backward: one environment, its batch, its task distribution."""

from __future__ import annotations

import os
import sys
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from maml_ray.tasks.distribution import Task, TaskDistribution
from maml_ray.tasks.mujoco_vector import Float64, MujocoVectorEnv, Transition

ENV_ID = "maml_ray/HalfCheetahBackward-v0"
CONTROL_WEIGHT = 0.05
"""Weight on Gymnasium's ``reward_ctrl`` (itself ``-0.1 |a|^2``), as in the source notebook."""


class HalfCheetahBackward(HalfCheetahEnv):
    """HalfCheetah-v5, rewarded for running backward.

    ``reward = -reward_forward + 0.05 * reward_ctrl``, Gymnasium's two parts of the original
    reward: the speed in the direction of the head in m/s, and ``-0.1 |action|^2``. Both terms
    stand in ``info`` as ``reward_backward`` and ``reward_control``.

    The observation space is bounded by MuJoCo's own limit on any coordinate (1e10, beyond which
    it resets the simulation) in place of infinity, which Gymnasium's checker warns of.

    Takes the arguments of ``HalfCheetah-v5``, ``render_mode`` among them. Unless told otherwise the
    camera follows the animal, which would run out of a fixed camera's picture within a second.
    """

    def __init__(self, **kwargs: Any) -> None:
        if "camera_id" not in kwargs:
            kwargs.setdefault("camera_name", "track")
        super().__init__(**kwargs)
        gym.utils.EzPickle.__init__(self, **kwargs)  # the parent recorded its own arguments
        # The floor is endless to the physics, but drawn for 40 m to each side: a good runner gets
        # to its edge. Ten times the size, and the chequers as large as before.
        floor = self.model.geom("floor")
        floor.size[:2] *= 10.0
        self.model.mat_texrepeat[floor.matid] *= 10.0
        modes = ["rgb_array", "depth_array", "rgbd_tuple"]
        if _has_display():  # without one, opening a window aborts the whole process
            modes.insert(0, "human")
        self.metadata = {**self.metadata, "render_modes": modes}
        limit = np.full(self.observation_space.shape or (), float(mujoco.mjMAXVAL))
        self.observation_space = Box(-limit, limit, dtype=np.float64)

    def step(
        self, action: NDArray[Any]
    ) -> tuple[Float64, np.float64, bool, bool, dict[str, np.float64]]:
        """Advance by one control step of 0.05 s."""
        observation, _, terminated, truncated, info = super().step(action)
        backward = -info.pop("reward_forward")
        control = CONTROL_WEIGHT * info.pop("reward_ctrl")
        info |= {"reward_backward": backward, "reward_control": control}
        return observation, backward + control, terminated, truncated, info


class HalfCheetahBackwardVector(MujocoVectorEnv):
    """A batch of :class:`HalfCheetahBackward`; what ``gymnasium.make_vec`` gives.

    Takes the arguments of ``HalfCheetah-v5``, but for ``render_mode``: it shows no pictures.

    Raises:
        ValueError: a render mode is asked for.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("render_mode", None) is not None:
            raise ValueError("the batched simulation does not render: use gymnasium.make for that")
        env = HalfCheetahBackward(**kwargs)
        super().__init__(
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self._forward_weight = env._forward_reward_weight
        self._control_weight = env._ctrl_cost_weight
        self._first_position = env.observation_structure["skipped_qpos"]
        self._never = np.zeros(num_envs, dtype=np.bool_)

    def _observe(self) -> Float64:
        return np.concatenate((self.positions[:, self._first_position :], self.velocities), axis=1)

    def _assess(self, positions_before: Float64, actions: NDArray[Any]) -> Transition:
        position = self.positions[:, 0].copy()
        velocity = (position - positions_before[:, 0]) / self.dt
        backward = -(self._forward_weight * velocity)
        cost = self._control_weight * np.add.reduce(np.square(actions), axis=1)
        control = CONTROL_WEIGHT * -cost
        infos = {
            "x_position": position,
            "x_velocity": velocity,
            "reward_backward": backward,
            "reward_control": control,
        }
        return Transition(backward + control, self._never.copy(), infos)

    def _reset_infos(self) -> dict[str, NDArray[Any]]:
        return {"x_position": self.positions[:, 0].copy()}


class HalfCheetahBackwardTasks(TaskDistribution):
    """The distribution with one task: run backward.

    Meta-learning on it finds parameters from which one policy-gradient step runs backward well;
    it is the source notebook's, and the quickest trial of the whole machinery.
    """

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """``count`` times the one task."""
        return (Task("backward"),) * count

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment, through ``gymnasium.make``."""
        return gym.make(ENV_ID, max_episode_steps=horizon, render_mode=render_mode)

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The batched simulation."""
        return HalfCheetahBackwardVector(
            num_envs, max_episode_steps=horizon, autoreset_mode=AutoresetMode.DISABLED
        )


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def register() -> None:
    """Make the environment known to ``gymnasium.make`` and ``make_vec``; done on import."""
    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID,
            entry_point=f"{__name__}:HalfCheetahBackward",
            vector_entry_point=f"{__name__}:HalfCheetahBackwardVector",
            max_episode_steps=200,
        )


register()
