"""Half-cheetahs with something to do: single environments, their batches, task distributions."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.config import Finite, NonNegative, Option
from maml_ray.tasks.distribution import Task, TaskDistribution
from maml_ray.tasks.mujoco_vector import Float64, MujocoVectorEnv, Transition
from maml_ray.tasks.sampling import in_turn, uniform_held_out, uniform_trained
from maml_ray.tasks.speed_goals import Direction, Goal, TargetSpeed

BACKWARD_ID = "maml_ray/HalfCheetahBackward-v0"
DIRECTION_ID = "maml_ray/HalfCheetahDirection-v0"
VELOCITY_ID = "maml_ray/HalfCheetahVelocity-v0"

NOTEBOOK_CONTROL_COST = 0.05 * 0.1
"""The source notebook's: 0.05 times Gymnasium's own, which is 0.1."""
PAPER_CONTROL_COST = 0.05
"""The papers', ``0.5 * 1e-1``: Finn et al. 2017 and, after them, ProMP and RLlib."""


class HalfCheetahRunner(HalfCheetahEnv, ABC):
    """HalfCheetah-v5 with a goal: ``reward = goal's reward - control_cost * |action|^2``.

    Both terms stand in ``info`` as ``reward_run`` and ``reward_control``, and the speed that the
    goal asks about as ``speed``, in m/s.

    The observation space is bounded by MuJoCo's own limit on any coordinate (1e10, beyond which
    it resets the simulation) in place of infinity, which Gymnasium's checker warns of.

    Args:
        goal: what is asked for.
        control_cost: weight on the squared action.
        torso_position: observe the torso's position (x, y, z in metres, of MuJoCo's last
            kinematics) after positions and velocities, as the papers' environments do.
        kwargs: of ``HalfCheetah-v5``, ``render_mode`` among them. Unless told otherwise the
            camera follows the animal, which would leave a fixed camera's picture in a second.
    """

    def __init__(
        self, goal: Goal, *, control_cost: float, torso_position: bool, **kwargs: Any
    ) -> None:
        self.goal = goal
        self.torso_position = torso_position
        if "camera_id" not in kwargs:
            kwargs.setdefault("camera_name", "track")
        super().__init__(ctrl_cost_weight=control_cost, **kwargs)
        # The floor is endless to the physics, but drawn for 40 m to each side: a good runner gets
        # to its edge. Ten times the size, and the chequers as large as before.
        floor = self.model.geom("floor")
        floor.size[:2] *= 10.0
        self.model.mat_texrepeat[floor.matid] *= 10.0
        modes = ["rgb_array", "depth_array", "rgbd_tuple"]
        if _has_display():  # without one, opening a window aborts the whole process
            modes.insert(0, "human")
        self.metadata = {**self.metadata, "render_modes": modes}
        limit = np.full(self._get_obs().shape, float(mujoco.mjMAXVAL))
        self.observation_space = Box(-limit, limit, dtype=np.float64)

    def step(
        self, action: NDArray[Any]
    ) -> tuple[Float64, np.float64, bool, bool, dict[str, np.float64]]:
        """Advance by one control step of 0.05 s."""
        observation, _, terminated, truncated, info = super().step(action)
        del info["reward_forward"]
        velocity = info["x_velocity"]
        run = self._forward_reward_weight * self.goal.reward(velocity)
        control = info.pop("reward_ctrl")
        info |= {
            "reward_run": run,
            "reward_control": control,
            "speed": self.goal.speed(velocity),
        }
        return observation, run + control, terminated, truncated, info

    def _get_obs(self) -> Float64:
        observation: Float64 = super()._get_obs()
        if self.torso_position:
            observation = np.concatenate((observation, self.get_body_com("torso")))
        return observation


class HalfCheetahBackward(HalfCheetahRunner):
    """The half-cheetah that is to run backward: the source notebook's task.

    Args:
        control_cost: see :class:`HalfCheetahRunner`.
        torso_position: likewise.
        kwargs: of ``HalfCheetah-v5``.
    """

    def __init__(
        self,
        *,
        control_cost: float = NOTEBOOK_CONTROL_COST,
        torso_position: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            Direction(-1.0), control_cost=control_cost, torso_position=torso_position, **kwargs
        )
        gym.utils.EzPickle.__init__(
            self, control_cost=control_cost, torso_position=torso_position, **kwargs
        )


class HalfCheetahDirection(HalfCheetahRunner):
    """The half-cheetah that is to run forward (``direction`` 1) or backward (-1).

    Args:
        direction: 1 or -1.
        control_cost: see :class:`HalfCheetahRunner`.
        torso_position: likewise.
        kwargs: of ``HalfCheetah-v5``.
    """

    def __init__(
        self,
        *,
        direction: float = 1.0,
        control_cost: float = PAPER_CONTROL_COST,
        torso_position: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            Direction(direction), control_cost=control_cost, torso_position=torso_position, **kwargs
        )
        gym.utils.EzPickle.__init__(
            self,
            direction=direction,
            control_cost=control_cost,
            torso_position=torso_position,
            **kwargs,
        )


class HalfCheetahVelocity(HalfCheetahRunner):
    """The half-cheetah that is to run at a given speed.

    Args:
        target_speed: m/s forward.
        control_cost: see :class:`HalfCheetahRunner`.
        torso_position: likewise.
        kwargs: of ``HalfCheetah-v5``.
    """

    def __init__(
        self,
        *,
        target_speed: float = 1.0,
        control_cost: float = PAPER_CONTROL_COST,
        torso_position: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            TargetSpeed(target_speed),
            control_cost=control_cost,
            torso_position=torso_position,
            **kwargs,
        )
        gym.utils.EzPickle.__init__(
            self,
            target_speed=target_speed,
            control_cost=control_cost,
            torso_position=torso_position,
            **kwargs,
        )


class HalfCheetahVector(MujocoVectorEnv):
    """A batch of one kind of :class:`HalfCheetahRunner`; what ``gymnasium.make_vec`` gives.

    Takes the arguments of the single environment, but for ``render_mode``: it shows no pictures.
    Its ``goal`` may be set between episodes.

    Raises:
        ValueError: a render mode is asked for.
    """

    single: type[HalfCheetahRunner]

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
        env = self.single(**kwargs)
        super().__init__(
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self.goal = env.goal
        self._forward_weight = env._forward_reward_weight
        self._control_weight = env._ctrl_cost_weight
        self._first_position = env.observation_structure["skipped_qpos"]
        self._never = np.zeros(num_envs, dtype=np.bool_)
        torso = env.model.body("torso").id
        self._torso_views = (
            [simulation.xpos[torso] for simulation in self._simulations]
            if env.torso_position
            else []
        )

    def _observe(self) -> Float64:
        parts = [self.positions[:, self._first_position :], self.velocities]
        if self._torso_views:
            parts.append(np.concatenate(self._torso_views).reshape(self.num_envs, 3))
        return np.concatenate(parts, axis=1)

    def _assess(self, positions_before: Float64, actions: NDArray[Any]) -> Transition:
        position = self.positions[:, 0].copy()
        velocity = (position - positions_before[:, 0]) / self.dt
        run = self._forward_weight * self.goal.reward(velocity)
        control = -(self._control_weight * np.add.reduce(np.square(actions), axis=1))
        infos = {
            "x_position": position,
            "x_velocity": velocity,
            "reward_run": run,
            "reward_control": control,
            "speed": self.goal.speed(velocity),
        }
        return Transition(run + control, self._never.copy(), infos)

    def _reset_infos(self) -> dict[str, NDArray[Any]]:
        return {"x_position": self.positions[:, 0].copy()}


class HalfCheetahBackwardVector(HalfCheetahVector):
    """A batch of :class:`HalfCheetahBackward`."""

    single = HalfCheetahBackward


class HalfCheetahDirectionVector(HalfCheetahVector):
    """A batch of :class:`HalfCheetahDirection`, all in one direction."""

    single = HalfCheetahDirection


class HalfCheetahVelocityVector(HalfCheetahVector):
    """A batch of :class:`HalfCheetahVelocity`, all at one target speed."""

    single = HalfCheetahVelocity


class _HalfCheetahTasks(TaskDistribution):
    """What the half-cheetah's distributions share: how a task becomes environments."""

    env_id: str
    vector: type[HalfCheetahVector]

    def __init__(self, control_cost: float, torso_position: bool) -> None:
        self._shared = {"control_cost": control_cost, "torso_position": torso_position}

    @abstractmethod
    def _goal(self, task: Task) -> tuple[Goal, dict[str, float]]:
        """What a task asks for, and the keyword of the environment that says so."""

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment, through ``gymnasium.make``."""
        _, keyword = self._goal(task)
        keywords: dict[str, Any] = {**keyword, **self._shared}
        return gym.make(self.env_id, max_episode_steps=horizon, render_mode=render_mode, **keywords)

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The batched simulation."""
        _, keyword = self._goal(task)
        return self.vector(
            num_envs,
            max_episode_steps=horizon,
            autoreset_mode=AutoresetMode.DISABLED,
            **keyword,
            **self._shared,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Another goal for the same simulations."""
        assert isinstance(env, HalfCheetahVector)
        env.goal, _ = self._goal(task)
        return True


class HalfCheetahBackwardTasks(_HalfCheetahTasks):
    """The distribution with one task: run backward.

    Meta-learning on it finds parameters from which one policy-gradient step runs backward well;
    it is the source notebook's, and the quickest trial of the whole machinery.

    Args:
        control_cost: weight on the squared action.
        torso_position: observe the torso's position too.
    """

    env_id = BACKWARD_ID
    vector = HalfCheetahBackwardVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = NOTEBOOK_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost, torso_position)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """``count`` times the one task."""
        return (Task("backward"),) * count

    def _goal(self, task: Task) -> tuple[Goal, dict[str, float]]:
        return Direction(-1.0), {}


class HalfCheetahDirectionTasks(_HalfCheetahTasks):
    """Two tasks that pull in opposite directions: run forward, run backward.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3. A meta-batch holds each
    equally often. With two tasks in all, none can be held out.

    Args:
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.
    """

    env_id = DIRECTION_ID
    vector = HalfCheetahDirectionVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = PAPER_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost, torso_position)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Both directions equally often, in random order."""
        return tuple(self._task(direction) for direction in in_turn(rng, (1.0, -1.0), count))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The task of ``{"direction": 1}`` or ``{"direction": -1}``."""
        if set(parameters) != {"direction"} or parameters["direction"] not in (1, -1):
            raise ValueError('a task is {"direction": 1} or {"direction": -1}')
        return self._task(float(parameters["direction"]))

    @staticmethod
    def _task(direction: float) -> Task:
        return Task("forward" if direction > 0 else "backward", (("direction", direction),))

    def _goal(self, task: Task) -> tuple[Goal, dict[str, float]]:
        direction = dict(task.parameters)["direction"]
        return Direction(direction), {"direction": direction}


class HalfCheetahVelocityTasks(_HalfCheetahTasks):
    """Run at a given speed, drawn uniformly from a range.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3: 0 to 2 m/s. A fifth of the
    range, in slices, is held out for evaluation.

    Args:
        speed_range: lowest and highest target speed in m/s.
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.

    Raises:
        ValueError: the range is empty.
    """

    env_id = VELOCITY_ID
    vector = HalfCheetahVelocityVector

    @validate_call
    def __init__(
        self,
        *,
        speed_range: tuple[Option[Finite], Option[Finite]] = (0.0, 2.0),
        control_cost: Option[NonNegative] = PAPER_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost, torso_position)
        if not speed_range[0] < speed_range[1]:
            raise ValueError(f"speed_range must go from low to high, got {list(speed_range)}")
        self.speed_range = speed_range

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Target speeds from the four fifths of the range that training sees."""
        return tuple(map(self._task, uniform_trained(rng, *self.speed_range, count)))

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Target speeds from the fifth of the range that training never sees."""
        return tuple(map(self._task, uniform_held_out(rng, *self.speed_range, count)))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The task of ``{"speed": 1.5}``, any speed."""
        if set(parameters) != {"speed"}:
            raise ValueError('a task is {"speed": <m/s>}')
        return self._task(parameters["speed"])

    @staticmethod
    def _task(speed: float) -> Task:
        return Task(f"{speed:.2f} m/s", (("speed", float(speed)),))

    def _goal(self, task: Task) -> tuple[Goal, dict[str, float]]:
        speed = dict(task.parameters)["speed"]
        return TargetSpeed(speed), {"target_speed": speed}


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def register() -> None:
    """Make the environments known to ``gymnasium.make`` and ``make_vec``; done on import."""
    for env_id, single in (
        (BACKWARD_ID, HalfCheetahBackward),
        (DIRECTION_ID, HalfCheetahDirection),
        (VELOCITY_ID, HalfCheetahVelocity),
    ):
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point=f"{__name__}:{single.__name__}",
                vector_entry_point=f"{__name__}:{single.__name__}Vector",
                max_episode_steps=200,
            )


register()
