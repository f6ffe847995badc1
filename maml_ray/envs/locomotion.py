"""Locomotion environments with goals, single and batched, from Gymnasium's MuJoCo animals.

:class:`LocomotionEnv` gives one of them a goal; :class:`LocomotionVectorEnv` is its batch. Both add
the same terms in the same order, so their rewards agree to the last bit.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from maml_ray.envs.mujoco_vector_env import MujocoVectorEnv
from maml_ray.envs.rendering import configure_rendering, with_tracking_camera
from maml_ray.envs.rewards import Direction, Goal, TargetSpeed
from maml_ray.envs.vector_env import Bool, Float64, Transition
from maml_ray.kernels.policy_forward import Float32, PolicyKernel

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


class RolloutOutcome(NamedTuple):
    """``rewards`` and ``speeds`` (T, K) of T steps of K episodes."""

    rewards: Float64
    speeds: Float64


class LocomotionVectorEnv(MujocoVectorEnv):
    """A batch of one kind of :class:`LocomotionEnv`, as ``gymnasium.make_vec`` creates it.

    Takes the arguments of the single environment except ``render_mode``. Its ``goal`` may be
    assigned between episodes.

    Raises:
        ValueError: a render mode is requested.
    """

    single: ClassVar[type[LocomotionEnv]]
    velocity_limit: ClassVar[float | None] = None
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
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self.goal = env.goal
        self._forward_weight = env._forward_reward_weight
        self._control_weight = env._ctrl_cost_weight
        self._first_position = env.observation_structure["skipped_qpos"]
        self._no_terminations = np.zeros(num_envs, dtype=np.bool_)
        torso = env.model.body("torso").id
        self._torso_views = (
            [simulation.xpos[torso] for simulation in self._simulations]
            if env.torso_position
            else []
        )

    def observe(self) -> Float64:
        """Return joint positions and velocities, then what else the family observes."""
        velocities = self.velocities
        if self.velocity_limit is not None:  # faster than numpy.clip on arrays of this size
            velocities = np.minimum(
                np.maximum(velocities, -self.velocity_limit), self.velocity_limit
            )
        parts = [self.positions[:, self._first_position :], velocities, *self.extra_observations()]
        if self._torso_views:
            parts.append(np.concatenate(self._torso_views).reshape(self.num_envs, 3))
        return np.concatenate(parts, axis=1)

    def extra_observations(self) -> tuple[Float64, ...]:
        """Return columns (K, n) that the family observes between velocities and torso position."""
        return ()

    def rollout(
        self, policy: PolicyKernel, observations: Float32, actions: Float32
    ) -> RolloutOutcome | None:
        """Run T steps from the states of the last reset without returning to Python.

        Equals T calls of :meth:`step` to the last bit. Only for episodes that never terminate;
        rewards are computed afterwards.

        Args:
            policy: acts, with its noise.
            observations: (T + 1, K, D), overwritten.
            actions: (T, K, A) as recorded, overwritten.

        Returns:
            None, with nothing done, if the family overrides how it steps, observes or rewards, or
            if the time limit is shorter than T.
        """
        steps, limit = len(actions), self._max_episode_steps
        if not self._supports_rollout() or (limit is not None and steps > limit):
            return None
        states = self.rollout_states(policy, self._first_position, observations, actions)
        velocities = (states[1:, :, 0] - states[:-1, :, 0]).reshape(-1) / self.dt
        env_actions = policy.action_map.apply(actions)
        run, control = self._reward_terms(velocities, env_actions.reshape(len(velocities), -1))
        shape = (steps, self.num_envs)
        return RolloutOutcome(
            (run + control).reshape(shape), self.goal.speed(velocities).reshape(shape)
        )

    def _supports_rollout(self) -> bool:
        cls = type(self)
        inherited = all(
            getattr(cls, name) is getattr(LocomotionVectorEnv, name) for name in _SKIPPED_BY_ROLLOUT
        )
        return inherited and self.velocity_limit is None and not self._torso_views

    def _reward_terms(
        self, velocities: Float64, actions: NDArray[Any]
    ) -> tuple[Float64, NDArray[Any]]:
        """Return the run and control rewards (n,) of velocities (n,) and actions (n, A)."""
        run = self._forward_weight * self.goal.reward(velocities)
        return run, -(self._control_weight * np.add.reduce(np.square(actions), axis=1))

    def assess(self, actions: NDArray[Any]) -> Transition:
        """Return the goal's reward, the control cost, and what the family adds."""
        velocity = self.x_velocities()
        run, control = self._reward_terms(velocity, actions)
        infos = {
            "x_position": self.positions[:, 0].copy(),
            "x_velocity": velocity,
            "reward_run": run,
            "reward_control": control,
            "speed": self.goal.speed(velocity),
        }
        return self.make_transition(run, control, infos)

    def x_velocities(self) -> Float64:
        """Return mean velocities (K,) along x over the step, in m/s."""
        velocities: Float64 = (self.positions[:, 0] - self.positions_before[:, 0]) / self.dt
        return velocities

    def make_transition(
        self, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """Combine the reward terms (K,) and decide terminations: here there are none."""
        return Transition(run + control, self._no_terminations.copy(), infos)

    def reset_infos(self) -> dict[str, NDArray[Any]]:
        """Return initial positions along x in meters."""
        return {"x_position": self.positions[:, 0].copy()}


_SKIPPED_BY_ROLLOUT = (
    "step",
    "advance",
    "read_states",
    "observe",
    "extra_observations",
    "assess",
    "x_velocities",
    "make_transition",
)
"""Methods of a step that :meth:`LocomotionVectorEnv.rollout` bypasses: none may be overridden."""


class FallingVectorEnv(LocomotionVectorEnv):
    """A batch of an animal that can fall, which terminates its episode.

    A family defines :meth:`is_healthy`.
    """

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._low_z, self._high_z = env._healthy_z_range
        self._bonus = np.full(num_envs, float(env._healthy_reward))
        self._terminate_when_unhealthy = env._terminate_when_unhealthy

    def is_healthy(self) -> Bool:
        """Return which simulations (K,) are upright."""
        raise NotImplementedError

    def make_transition(
        self, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """Add the bonus of each step, and terminate episodes of fallen animals."""
        healthy = self.is_healthy()
        bonus = infos["reward_survive"] = self._bonus.copy()
        fallen = ~healthy if self._terminate_when_unhealthy else self._no_terminations.copy()
        return Transition((run + bonus) + control, fallen, infos)
