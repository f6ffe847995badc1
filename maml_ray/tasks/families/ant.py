"""Ants with goals: environments, batches and task distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.config.value_types import Finite, NonNegative, Option
from maml_ray.envs.locomotion import (
    DirectionEnv,
    FallingVectorEnv,
    LocomotionEnv,
    Terms,
    VelocityEnv,
)
from maml_ray.envs.mujoco_simulations import Field
from maml_ray.envs.mujoco_state import Part, State
from maml_ray.envs.rewards import Goal
from maml_ray.envs.vector_env import Bool, Float64, Transition
from maml_ray.tasks.families.locomotion import DirectionTasks, VelocityTasks

CONTROL_COST = 0.5 * 1e-2
"""Of ``ant_env_rand_direc.py`` and ``ant_env_rand.py`` of Finn et al. 2017
(https://github.com/cbfinn/maml_rl), and of pytorch-maml-rl. ProMP's ``ant_rand_direc.py``
(https://github.com/jonasrothfuss/ProMP) has 0.5."""
SURVIVAL_BONUS = 0.05
"""Theirs too; earned in each step, including the one that ends the episode. ProMP's has 1."""
SPEED_BONUS = 1.0
"""Added to the velocity goal: without it an ant gains by ending its episode (maml_rl's words:
"make it happy, not suicidal")."""


class AntGoalEnv(LocomotionEnv, AntEnv):
    """Ant-v5 with a goal: see :class:`LocomotionEnv`. A control step is 0.05 s.

    The reward adds 0.05 in each step and, with contact forces, subtracts
    ``5e-4 * sum(clip(forces, -1, 1)^2)``, as ``reward_survive`` and ``reward_contact``. An episode
    ends when the torso's height leaves 0.2 to 1 m, or the state is not finite.

    Args:
        goal: the task-dependent part of the reward.
        contact_forces: observe the clipped external contact forces and pay for them, as Ant-v5
            does. Off by default: mujoco-py 2 left them at zero, most published curves were made
            so, and computing them takes time.
        control_cost: weight of the squared action.
        healthy_reward: bonus of each step.
        kwargs: ``torso_position`` of :class:`LocomotionEnv`, and those of ``Ant-v5``.
    """

    dropped_infos = ("y_position", "y_velocity", "distance_from_origin")

    def __init__(
        self,
        goal: Goal,
        *,
        contact_forces: bool = False,
        control_cost: float = CONTROL_COST,
        healthy_reward: float = SURVIVAL_BONUS,
        **kwargs: Any,
    ) -> None:
        self.has_contact_forces = contact_forces
        super().__init__(
            goal,
            control_cost=control_cost,
            healthy_reward=healthy_reward,
            include_cfrc_ext_in_observation=contact_forces,
            **kwargs,
        )

    def _get_rew(self, x_velocity: Any, action: NDArray[Any]) -> tuple[Any, Terms]:
        _, terms = super()._get_rew(x_velocity, action)
        bonus = terms["reward_survive"] = self._healthy_reward
        costs = terms["reward_control"]
        if self.has_contact_forces:
            terms["reward_contact"] = -self.contact_cost
            costs = costs + terms["reward_contact"]
        return (terms["reward_run"] + bonus) + costs, terms


class AntDirection(DirectionEnv, AntGoalEnv):
    """The ant that must run forward or backward along x: see :class:`DirectionEnv`."""


class AntVelocity(VelocityEnv, AntGoalEnv):
    """The ant that must run forward at a target speed: see :class:`VelocityEnv`."""

    speed_bonus = SPEED_BONUS


class AntVectorEnv(FallingVectorEnv):
    """A batch of one kind of :class:`AntGoalEnv`."""

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._contact_weight = env._contact_cost_weight
        self._lowest_force, self._highest_force = env._contact_force_range

    def tracked_fields(self) -> dict[str, Field]:
        """Add the torso's x, and contact forces if used."""
        env: Any = self._env
        main_body = env.model.body(env._main_body).id
        fields = super().tracked_fields() | {"x": lambda data: data.xpos[main_body][:1]}
        return fields | ({"forces": lambda data: data.cfrc_ext} if env.has_contact_forces else {})

    def further_parts(self) -> list[Part]:
        """Return the forces (78) on all bodies except the world, if used."""
        env: Any = self._env
        low, high = env._contact_force_range
        return [Part("forces", start=6, low=low, high=high)] if env.has_contact_forces else []

    def x_velocities(self, before: State, after: State) -> Float64:
        """Return velocities (...) in m/s of the torso's body, not of its joint, as Ant-v5 does.

        Positions are those of MuJoCo's last kinematics, one physics step behind the joint's.
        """
        velocities: Float64 = (after.tracked["x"] - before.tracked["x"])[..., 0] / self.dt
        return velocities

    def is_healthy(self, state: State) -> Bool:
        """Return which torsos (...) are at a healthy height in a finite state."""
        height = state.positions[..., 2]
        healthy: Bool = (self._low_z <= height) & (height <= self._high_z)
        # The sum of finite states is finite: cheaper than a test of each number.
        total = np.add.reduce(state.positions, axis=-1) + np.add.reduce(state.velocities, axis=-1)
        healthy &= np.isfinite(total)
        return healthy

    def make_transition(
        self, state: State, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """Add the contact cost to the control cost."""
        costs = control
        if "forces" in state.tracked:
            forces = np.clip(state.tracked["forces"], self._lowest_force, self._highest_force)
            squares = np.add.reduce(np.square(forces).reshape(*run.shape, -1), axis=-1)
            contact = infos["reward_contact"] = -(self._contact_weight * squares)
            costs = control + contact
        return super().make_transition(state, run, costs, infos)


class AntDirectionVector(AntVectorEnv):
    """A batch of :class:`AntDirection` in one direction."""

    single = AntDirection


class AntVelocityVector(AntVectorEnv):
    """A batch of :class:`AntVelocity` at one target speed."""

    single = AntVelocity


class AntDirectionTasks(DirectionTasks):
    """Run forward, or run backward: see :class:`DirectionTasks`.

    By default with the costs of Finn et al. 2017. ProMP's are a control cost of 0.5 and a survival
    bonus of 1; there an ant has fallen at a height of 0 instead of 0.2 m.

    Args:
        control_cost: weight of the squared action.
        survival_bonus: added in each step.
        torso_position: also observe the torso's position, as the papers did.
        contact_forces: observe contact forces and pay for them: see :class:`AntGoalEnv`.
    """

    vector = AntDirectionVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = CONTROL_COST,
        survival_bonus: Option[NonNegative] = SURVIVAL_BONUS,
        torso_position: Option[bool] = False,
        contact_forces: Option[bool] = False,
    ) -> None:
        super().__init__(
            control_cost=control_cost,
            healthy_reward=survival_bonus,
            torso_position=torso_position,
            contact_forces=contact_forces,
        )


class AntVelocityTasks(VelocityTasks):
    """Run at a target speed, in the paper 0 to 3 m/s: see :class:`VelocityTasks`.

    Args:
        speed_range: lowest and highest target speed in m/s.
        control_cost: weight of the squared action; the papers' by default.
        torso_position: also observe the torso's position, as the papers did.
        contact_forces: observe contact forces and pay for them: see :class:`AntGoalEnv`.

    Raises:
        ValueError: the range is empty.
    """

    vector = AntVelocityVector

    @validate_call
    def __init__(
        self,
        *,
        speed_range: tuple[Option[Finite], Option[Finite]] = (0.0, 3.0),
        control_cost: Option[NonNegative] = CONTROL_COST,
        torso_position: Option[bool] = False,
        contact_forces: Option[bool] = False,
    ) -> None:
        super().__init__(
            speed_range,
            control_cost=control_cost,
            torso_position=torso_position,
            contact_forces=contact_forces,
        )
