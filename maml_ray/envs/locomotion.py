"""Animals that run: what Gymnasium's half-cheetah, ant, walker and hopper have in common.

``Runner`` makes one of them an environment with a goal; ``RunnerVector`` is its batch. Both add
up the same terms in the same order, so their rewards agree to the last bit.
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
from maml_ray.envs.rendering import follow, furnish
from maml_ray.envs.rewards import Goal
from maml_ray.envs.vector_env import Bool, Float64, Transition
from maml_ray.kernels.policy_forward import Float32, PolicyKernel, scaled

Terms = dict[str, Any]


class Runner(MujocoEnv, EzPickle, ABC):
    """A Gymnasium runner with a goal: ``reward = goal's reward - control_cost * |action|^2``.

    To be put before one of Gymnasium's ``-v5`` classes among the bases. Both terms stand in
    ``info`` as ``reward_run`` and ``reward_control``, and the speed that the goal asks about as
    ``speed``, in m/s.

    Args:
        goal: what is asked for.
        control_cost: weight on the squared action.
        torso_position: observe the torso's position (x, y, z in meters, of MuJoCo's last
            kinematics) after everything else, as the papers' environments do.
        kwargs: of the Gymnasium class, ``render_mode`` among them. Unless told otherwise the
            camera follows the animal.
    """

    unused_infos: ClassVar[tuple[str, ...]] = ()
    """What Gymnasium's class tells and nobody here asks for."""
    _forward_reward_weight: float

    def __init__(
        self, goal: Goal, *, control_cost: float, torso_position: bool = False, **kwargs: Any
    ) -> None:
        self.goal = goal
        self.torso_position = torso_position
        keywords: dict[str, Any] = {"ctrl_cost_weight": control_cost, **follow(kwargs)}
        super().__init__(**keywords)
        furnish(self)

    def step(
        self, action: NDArray[Any]
    ) -> tuple[Float64, np.float64, bool, bool, dict[str, np.float64]]:
        """Advance by one control step of ``dt`` seconds."""
        observation, reward, terminated, truncated, info = super().step(action)
        for name in self.unused_infos:
            del info[name]
        return observation, reward, bool(terminated), truncated, info

    def control_cost(self, action: NDArray[Any]) -> Any:
        """The weighted squared action; Gymnasium's class has it."""
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


_GONE_AROUND = (
    "step",
    "advance",
    "read_states",
    "observe",
    "more_observed",
    "assess",
    "x_velocities",
    "judge",
)
"""What a batch does in a step, and does not do when it plays whole episodes."""


class Played(NamedTuple):
    """What T steps of K episodes were worth: ``rewards`` and ``speeds`` (T, K)."""

    rewards: Float64
    speeds: Float64


class RunnerVector(MujocoVectorEnv):
    """A batch of one kind of :class:`Runner`; what ``gymnasium.make_vec`` gives.

    Takes the arguments of the single environment, but for ``render_mode``: it shows no pictures.
    Its ``goal`` may be set between episodes.

    Raises:
        ValueError: a render mode is asked for.
    """

    single: ClassVar[type[Runner]]
    velocity_limit: ClassVar[float | None] = None
    """Joint velocities are observed clipped to this, where Gymnasium's class clips them."""

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
        self._never = np.zeros(num_envs, dtype=np.bool_)
        torso = env.model.body("torso").id
        self._torso_views = (
            [simulation.xpos[torso] for simulation in self._simulations]
            if env.torso_position
            else []
        )

    def observe(self) -> Float64:
        """Joint positions and velocities, then whatever else the family observes."""
        velocities = self.velocities
        if self.velocity_limit is not None:  # quicker than numpy.clip on arrays of this size
            velocities = np.minimum(
                np.maximum(velocities, -self.velocity_limit), self.velocity_limit
            )
        parts = [self.positions[:, self._first_position :], velocities, *self.more_observed()]
        if self._torso_views:
            parts.append(np.concatenate(self._torso_views).reshape(self.num_envs, 3))
        return np.concatenate(parts, axis=1)

    def more_observed(self) -> tuple[Float64, ...]:
        """Columns (K, n) that a family observes between velocities and torso position."""
        return ()

    def play(self, player: PolicyKernel, observed: Float32, actions: Float32) -> Played | None:
        """Whole episodes, where none ever ends: what the steps were worth is asked afterwards.

        From the states that a reset has left; equal to as many calls of ``step`` to the last bit.
        Between two steps of the physics there are then the policy and a copy of the states.

        Args:
            player: who acts.
            observed: (T + 1, K, D) observations, to be filled in.
            actions: (T, K, A) actions as recorded, likewise.

        Returns:
            None, and nothing is done, where a family has ways of its own to step, to see or to
            judge, or where the time limit comes sooner.
        """
        steps, limit = len(actions), self._max_episode_steps
        if not self._is_plain() or (limit is not None and steps > limit):
            return None
        states = self.play_states(player, self._first_position, observed, actions)
        velocities = (states[1:, :, 0] - states[:-1, :, 0]).reshape(-1) / self.dt
        given = scaled(actions, float(player.scale))
        run, control = self._earned(velocities, given.reshape(len(velocities), -1))
        shape = (steps, self.num_envs)
        return Played((run + control).reshape(shape), self.goal.speed(velocities).reshape(shape))

    def _is_plain(self) -> bool:
        """Whether all that :meth:`play` goes around is as it is here: a family may differ."""
        kind = type(self)
        own = all(getattr(kind, name) is getattr(RunnerVector, name) for name in _GONE_AROUND)
        return own and self.velocity_limit is None and not self._torso_views

    def _earned(self, velocities: Float64, actions: NDArray[Any]) -> tuple[Float64, NDArray[Any]]:
        """What velocities (n,) and actions (n, A) earn: for the run, and for the control."""
        run = self._forward_weight * self.goal.reward(velocities)
        return run, -(self._control_weight * np.add.reduce(np.square(actions), axis=1))

    def assess(self, actions: NDArray[Any]) -> Transition:
        """The goal's reward, the cost of the action, and what the family adds to them."""
        velocity = self.x_velocities()
        run, control = self._earned(velocity, actions)
        infos = {
            "x_position": self.positions[:, 0].copy(),
            "x_velocity": velocity,
            "reward_run": run,
            "reward_control": control,
            "speed": self.goal.speed(velocity),
        }
        return self.judge(run, control, infos)

    def x_velocities(self) -> Float64:
        """(K,) mean velocity along x over the step, m/s."""
        velocities: Float64 = (self.positions[:, 0] - self.positions_before[:, 0]) / self.dt
        return velocities

    def judge(
        self, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """The reward of its parts (K,), and which episodes have ended: here none ever does."""
        return Transition(run + control, self._never.copy(), infos)

    def reset_infos(self) -> dict[str, NDArray[Any]]:
        """Where along x the episode begins, in meters."""
        return {"x_position": self.positions[:, 0].copy()}


class FallingVector(RunnerVector):
    """A batch of a runner that may fall, whose episode then ends.

    A family says in :meth:`healthy` who is on its feet, and in :meth:`survival` what that earns.
    """

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._low_z, self._high_z = env._healthy_z_range
        self._healthy_reward = env._healthy_reward
        self._ends = env._terminate_when_unhealthy

    def healthy(self) -> Bool:
        """(K,) which simulations are on their feet."""
        raise NotImplementedError

    def survival(self, healthy: Bool) -> Float64:
        """(K,) the bonus of this step, of which simulations are ``healthy``."""
        survive: Float64 = healthy * self._healthy_reward
        return survive

    def judge(
        self, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """The bonus on top of the runner's reward; an end where one has fallen."""
        healthy = self.healthy()
        survive = infos["reward_survive"] = self.survival(healthy)
        return Transition((run + survive) + control, self.fallen(healthy), infos)

    def fallen(self, healthy: Bool) -> Bool:
        """(K,) which episodes end."""
        return ~healthy if self._ends else self._never.copy()
