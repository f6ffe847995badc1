"""Ants that run in a direction or at a speed: single environments, batches, distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.config.settings import Finite, NonNegative, Option
from maml_ray.envs.locomotion import FallingVector, Runner, Terms
from maml_ray.envs.rewards import Direction, Goal, TargetSpeed
from maml_ray.envs.vector_env import Bool, Float64, Transition
from maml_ray.tasks.locomotion import DirectionTasks, VelocityTasks

CONTROL_COST = 0.5 * 1e-2
"""The papers': ``ant_env_rand_direc.py`` and ``ant_env_rand.py`` of Finn et al. 2017
(https://github.com/cbfinn/maml_rl), and ProMP (https://arxiv.org/abs/1810.06784) after them."""
SURVIVAL_BONUS = 0.05
"""Theirs too; earned in every step, the one that ends the episode among them."""
SPEED_BONUS = 1.0
"""Added to the speed goal: without it an ant gains by ending its episode (maml_rl's words: "make
it happy, not suicidal")."""


class AntRunner(Runner, AntEnv):
    """Ant-v5 with a goal: see :class:`Runner`. A control step is 0.05 s.

    To the runner's reward come 0.05 for every step and, where contact forces are asked for, minus
    ``5e-4 * sum(clip(forces, -1, 1)^2)``, as ``reward_survive`` and ``reward_contact``. An episode
    ends when the torso's height leaves 0.2 to 1 m, or the state is not finite.

    Args:
        goal: what is asked for.
        contact_forces: observe the clipped external contact forces and pay for them, as Ant-v5
            does. Not by default: mujoco-py 2 left them at zero, most published curves were made
            so, and computing them takes time.
        control_cost: weight on the squared action.
        kwargs: ``torso_position`` of :class:`Runner`, and those of ``Ant-v5``.
    """

    unused_infos = ("y_position", "y_velocity", "distance_from_origin")

    def __init__(
        self,
        goal: Goal,
        *,
        contact_forces: bool = False,
        control_cost: float = CONTROL_COST,
        **kwargs: Any,
    ) -> None:
        self.pays_contacts = contact_forces
        keywords = {"healthy_reward": SURVIVAL_BONUS, "control_cost": control_cost, **kwargs}
        super().__init__(goal, include_cfrc_ext_in_observation=contact_forces, **keywords)

    def _get_rew(self, x_velocity: Any, action: NDArray[Any]) -> tuple[Any, Terms]:
        _, terms = super()._get_rew(x_velocity, action)
        survive = terms["reward_survive"] = self._healthy_reward
        costs = terms["reward_control"]
        if self.pays_contacts:
            terms["reward_contact"] = -self.contact_cost
            costs = costs + terms["reward_contact"]
        return (terms["reward_run"] + survive) + costs, terms


class AntDirection(AntRunner):
    """The ant that is to run forward along x (``direction`` 1) or backward (-1).

    Args:
        direction: 1 or -1.
        kwargs: of :class:`AntRunner`, ``control_cost`` and ``torso_position`` among them.
    """

    def __init__(self, *, direction: float = 1.0, **kwargs: Any) -> None:
        super().__init__(Direction(direction), **kwargs)
        gym.utils.EzPickle.__init__(self, direction=direction, **kwargs)


class AntVelocity(AntRunner):
    """The ant that is to run forward at a given speed.

    Args:
        target_speed: m/s along x.
        kwargs: of :class:`AntRunner`, ``control_cost`` and ``torso_position`` among them.
    """

    def __init__(self, *, target_speed: float = 1.0, **kwargs: Any) -> None:
        super().__init__(TargetSpeed(target_speed, SPEED_BONUS), **kwargs)
        gym.utils.EzPickle.__init__(self, target_speed=target_speed, **kwargs)


class AntVector(FallingVector):
    """A batch of one kind of :class:`AntRunner`."""

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._pays_contacts = env.pays_contacts
        self._contact_weight = env._contact_cost_weight
        self._lowest_force, self._highest_force = env._contact_force_range
        self._survival = np.full(num_envs, float(self._healthy_reward))
        main_body = env.model.body(env._main_body).id
        self._x_views = [simulation.xpos[main_body][:1] for simulation in self._simulations]
        self._force_views = [simulation.cfrc_ext.reshape(-1) for simulation in self._simulations]
        self._x, self._x_before = np.zeros(num_envs), np.zeros(num_envs)
        self._forces = np.zeros((num_envs, env.data.cfrc_ext.size))

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """The physics, and the contact forces where they are wanted: MuJoCo leaves them out."""
        super().advance(indices, actions)
        if self._pays_contacts:
            for i in indices:
                mujoco.mj_rnePostConstraint(self._model, self._simulations[i])

    def read_states(self) -> None:
        """The torso's place of MuJoCo's last kinematics too, as Ant-v5 reads it, and forces."""
        super().read_states()
        self._x, self._x_before = self._x_before, self._x
        np.concatenate(self._x_views, out=self._x)
        if self._pays_contacts:
            np.concatenate(self._force_views, out=self._forces.reshape(-1))
            np.clip(self._forces, self._lowest_force, self._highest_force, out=self._forces)

    def more_observed(self) -> tuple[Float64, ...]:
        """The forces (K, 78) on all bodies but the world."""
        return (self._forces[:, 6:],) if self._pays_contacts else ()

    def x_velocities(self) -> Float64:
        """(K,) m/s, of the torso's place and not of the joint, as Ant-v5's."""
        velocities: Float64 = (self._x - self._x_before) / self.dt
        return velocities

    def healthy(self) -> Bool:
        """(K,) torso at a healthy height, everything finite."""
        height = self.positions[:, 2]
        healthy: Bool = (self._low_z <= height) & (height <= self._high_z)
        # A sum is finite where all its terms are: one call in place of two tests of every number.
        total = np.add.reduce(self.positions, axis=1) + np.add.reduce(self.velocities, axis=1)
        healthy &= np.isfinite(total)
        return healthy

    def survival(self, healthy: Bool) -> Float64:
        """(K,) the bonus, whoever has fallen."""
        return self._survival.copy()

    def judge(
        self, run: Float64, control: NDArray[Any], infos: dict[str, NDArray[Any]]
    ) -> Transition:
        """The contact cost besides."""
        costs = control
        if self._pays_contacts:
            squares = np.add.reduce(np.square(self._forces), axis=1)
            contact = infos["reward_contact"] = -(self._contact_weight * squares)
            costs = control + contact
        return super().judge(run, costs, infos)


class AntDirectionVector(AntVector):
    """A batch of :class:`AntDirection`, all in one direction."""

    single = AntDirection


class AntVelocityVector(AntVector):
    """A batch of :class:`AntVelocity`, all at one target speed."""

    single = AntVelocity


class AntDirectionTasks(DirectionTasks):
    """Run forward, or run backward: see :class:`DirectionTasks`.

    Args:
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.
        contact_forces: observe contact forces and pay for them: see :class:`AntRunner`.
    """

    vector = AntDirectionVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = CONTROL_COST,
        torso_position: Option[bool] = False,
        contact_forces: Option[bool] = False,
    ) -> None:
        super().__init__(
            control_cost=control_cost, torso_position=torso_position, contact_forces=contact_forces
        )


class AntVelocityTasks(VelocityTasks):
    """Run at a given speed, in the paper 0 to 3 m/s: see :class:`VelocityTasks`.

    Args:
        speed_range: lowest and highest target speed in m/s.
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.
        contact_forces: observe contact forces and pay for them: see :class:`AntRunner`.

    Raises:
        ValueError: the range is empty.
    """

    vector = AntVelocityVector
    bonus: ClassVar[float] = SPEED_BONUS

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
