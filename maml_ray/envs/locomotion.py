"""Locomotion environments with goals, single and batched, from Gymnasium's MuJoCo animals.

:class:`LocomotionEnv` gives one of them a goal; :class:`LocomotionVectorEnv` is its batch. Both add
the same terms in the same order, so their rewards agree to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC
from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.envs.mujoco_simulations import Field
from maml_ray.envs.mujoco_state import Part, State
from maml_ray.envs.mujoco_vector_env import MujocoVectorEnv
from maml_ray.envs.rendering import configure_rendering, with_tracking_camera
from maml_ray.envs.rewards import Direction, Goal, TargetSpeed
from maml_ray.envs.vector_env import Bool, Float64, Transition

Terms = dict[str, Any]


class LocomotionEnv(MujocoEnv, EzPickle, ABC):
    """A Gymnasium animal with ``reward = goal's reward - control_cost * |action|^2``.

    The cost is of the action as given; MuJoCo clips to the action space only what moves the joints.
    Policies clip before they act: see ``policy.action_bounds``.

    List it among the bases before one of Gymnasium's ``-v5`` classes. ``info`` has both terms as
    ``reward_run`` and ``reward_control``, and the goal's speed in m/s as ``speed``.

    Args:
        goal: the task-dependent part of the reward.
        control_cost: weight of the squared action.
        torso_position: append the torso's position (x, y, z in meters, of MuJoCo's last
            kinematics) to the observation, as the papers' environments do.
        kwargs: of the Gymnasium class, such as ``render_mode``. The camera follows the animal
            unless they name another.
    """

    dropped_infos: ClassVar[tuple[str, ...]] = ()
    """Infos of Gymnasium's class that nothing here reads."""
    has_contact_forces: bool = False
    """Observes contact forces, which MuJoCo computes only on request."""
    _forward_reward_weight: float
    _healthy_reward: float

    def __init__(
        self, goal: Goal, *, control_cost: float, torso_position: bool = False, **kwargs: Any
    ) -> None:
        self.goal = goal
        self.torso_position = torso_position
        kwargs = with_tracking_camera(kwargs)
        super().__init__(ctrl_cost_weight=control_cost, **kwargs)  # type: ignore[call-arg]
        configure_rendering(self)

    def step(
        self, action: NDArray[Any]
    ) -> tuple[Float64, np.float64, bool, bool, dict[str, np.float64]]:
        """Advance by one control step of ``dt`` seconds."""
        observation, reward, terminated, truncated, info = super().step(action)
        for name in self.dropped_infos:
            del info[name]
        return observation, reward, bool(terminated), truncated, info

    def control_cost(self, action: NDArray[Any]) -> Any:
        """Return the weighted squared action, as Gymnasium's class computes it."""
        return super().control_cost(action)  # type: ignore[misc]

    def _get_rew(self, x_velocity: Any, action: NDArray[Any]) -> tuple[Any, Terms]:
        run = self._forward_reward_weight * self.goal.reward(x_velocity)
        control = -self.control_cost(action)
        terms = {"reward_run": run, "reward_control": control, "speed": self.goal.speed(x_velocity)}
        return run + control, terms

    def _get_obs(self) -> Float64:
        observation: Float64 = super()._get_obs()  # type: ignore[misc]
        if self.torso_position:
            observation = np.concatenate((observation, self.get_body_com("torso")))
        return observation

    def _get_reset_info(self) -> dict[str, float]:
        return {"x_position": self.data.qpos[0]}


class DirectionEnv(LocomotionEnv):
    """Rewards speed forward or backward; list it before a family's :class:`LocomotionEnv`.

    Args:
        direction: 1 along x, -1 against it.
        kwargs: of the family's environment.
    """

    def __init__(self, *, direction: float = 1.0, **kwargs: Any) -> None:
        super().__init__(self.make_goal(direction), **kwargs)
        EzPickle.__init__(self, direction=direction, **kwargs)

    @classmethod
    def make_goal(cls, direction: float) -> Goal:
        """Create the goal of a direction."""
        return Direction(direction)


class VelocityEnv(LocomotionEnv):
    """Rewards running at a target speed; list it before a family's :class:`LocomotionEnv`.

    Args:
        speed: m/s along x.
        kwargs: of the family's environment.

    Raises:
        TypeError: the speed is given by its old name ``target_speed``.
    """

    speed_bonus: ClassVar[float] = 0.0
    """Added to the goal's reward in each step."""

    def __init__(self, *, speed: float = 1.0, **kwargs: Any) -> None:
        if "target_speed" in kwargs:
            raise TypeError("target_speed is now called speed, as in the task's parameters")
        super().__init__(self.make_goal(speed), **kwargs)
        EzPickle.__init__(self, speed=speed, **kwargs)

    @classmethod
    def make_goal(cls, speed: float) -> Goal:
        """Create the goal of a target speed."""
        return TargetSpeed(speed, cls.speed_bonus)


class LocomotionVectorEnv(MujocoVectorEnv):
    """A batch of one kind of :class:`LocomotionEnv`, as ``gymnasium.make_vec`` creates it.

    Takes the arguments of the single environment except ``render_mode``. Its ``goal`` may be
    assigned between episodes.

    Raises:
        ValueError: a render mode is requested.
    """

    single: ClassVar[type[LocomotionEnv]]
    velocity_limit: ClassVar[float] = math.inf
    """Observed joint velocities are clipped to this, as far as Gymnasium's class does so."""

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
        env: Any = self.single(**kwargs)
        super().__init__(
            env,
            num_envs,
            max_episode_steps=max_episode_steps,
            autoreset_mode=autoreset_mode,
            contact_forces=env.has_contact_forces,
        )
        self.goal = env.goal
        self._forward_weight = env._forward_reward_weight
        self._control_weight = env._ctrl_cost_weight

    def tracked_fields(self) -> dict[str, Field]:
        """Return the torso's position, if it is observed."""
        env: Any = self._env
        torso = env.model.body("torso").id
        return {"torso": lambda data: data.xpos[torso]} if env.torso_position else {}

    def observation_parts(self) -> list[Part]:
        """Return joint positions and velocities, then what else the family observes."""
        env: Any = self._env
        return [
            Part("qpos", start=env.observation_structure["skipped_qpos"]),
            Part("qvel", low=-self.velocity_limit, high=self.velocity_limit),
            *self.further_parts(),
            *([Part("torso")] if env.torso_position else []),
        ]

    def further_parts(self) -> list[Part]:
        """Return parts that the family observes between velocities and the torso's position."""
        return []

    def assess_step(self, before: State, after: State, actions: NDArray[Any]) -> Transition:
        """Return the goal's reward, the control cost, and what the family adds."""
        velocity = self.x_velocities(before, after)
        run = self._forward_weight * self.goal.reward(velocity)
        control = -(self._control_weight * np.add.reduce(np.square(actions), axis=-1))
        infos = {
            "x_position": after.positions[..., 0].copy(),
            "x_velocity": velocity,
            "reward_run": run,
            "reward_control": control,
            "speed": self.goal.speed(velocity),
        }
        return self.make_transition(after, run, control, infos)

    def x_velocities(self, before: State, after: State) -> Float64:
        """Return mean velocities (...) along x over the step, in m/s."""
        velocities: Float64 = (after.positions[..., 0] - before.positions[..., 0]) / self.dt
        return velocities

    def make_transition(
        self, state: State, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """Combine the reward terms (...) and decide terminations: here there are none."""
        return Transition(run + control, np.zeros(run.shape, np.bool_), infos)

    def reset_infos(self) -> dict[str, NDArray[Any]]:
        """Return initial positions (K,) along x in meters."""
        return {"x_position": self.state.positions[:, 0].copy()}


class FallingVectorEnv(LocomotionVectorEnv):
    """A batch of an animal that can fall, which terminates its episode.

    A family defines :meth:`is_healthy`.
    """

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._low_z, self._high_z = env._healthy_z_range
        self._bonus = float(env._healthy_reward)
        self._terminate_when_unhealthy = env._terminate_when_unhealthy

    def is_healthy(self, state: State) -> Bool:
        """Return which simulations (...) are upright."""
        raise NotImplementedError

    def make_transition(
        self, state: State, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """Add the bonus of each step, and terminate episodes of fallen animals."""
        bonus = infos["reward_survive"] = np.full(run.shape, self._bonus)
        if self._terminate_when_unhealthy:
            fallen = ~self.is_healthy(state)
        else:
            fallen = np.zeros(run.shape, np.bool_)
        return Transition((run + bonus) + control, fallen, infos)
