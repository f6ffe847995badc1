"""Walkers and hoppers of other masses, inertias, damping and friction, told apart by nothing else.

Rothfuss et al. 2019, ProMP (https://arxiv.org/abs/1810.06784), after rand_param_envs. The reward
is Gymnasium's own, as it is there: speed forward, 1 for every step on its feet, minus
``1e-3 * |action|^2``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.config.settings import NonNegative, Option
from maml_ray.envs.locomotion import FallingVector, Runner, Terms
from maml_ray.envs.model_randomizer import Dynamics, sampled_multipliers
from maml_ray.envs.rewards import Direction
from maml_ray.envs.vector_env import Bool
from maml_ray.tasks.locomotion import RunnerTasks
from maml_ray.tasks.task import Task

CONTROL_COST = 1e-3
"""Gymnasium's own, and the papers'."""


class RandomDynamicsRunner(Runner):
    """A Gymnasium runner that may fall, with other dynamics: see :class:`Runner`.

    To the runner's reward comes Gymnasium's bonus for being on its feet, as ``reward_survive``.

    Args:
        dynamics: multipliers by name, see :class:`~maml_ray.envs.model_randomizer.Dynamics`; those
            left out are 1. ``env.dynamics.apply`` changes them between episodes.
        control_cost: weight on the squared action.
        kwargs: of :class:`Runner` and the Gymnasium class.

    Raises:
        ValueError: a multiplier's name is not known, or it is not a positive number.
    """

    unused_infos = ("z_distance_from_origin",)

    def __init__(
        self,
        *,
        dynamics: Mapping[str, float] | None = None,
        control_cost: float = CONTROL_COST,
        **kwargs: Any,
    ) -> None:
        given = dict(dynamics or {})
        super().__init__(Direction(1.0), control_cost=control_cost, **kwargs)
        self.dynamics = Dynamics(self.model)
        self.dynamics.apply(given)
        gym.utils.EzPickle.__init__(self, dynamics=given, control_cost=control_cost, **kwargs)

    def _get_rew(self, x_velocity: Any, action: NDArray[Any]) -> tuple[Any, Terms]:
        _, terms = super()._get_rew(x_velocity, action)
        survive = terms["reward_survive"] = self.healthy_reward  # type: ignore[attr-defined]
        return (terms["reward_run"] + survive) + terms["reward_control"], terms


class Walker2dRandomDynamics(RandomDynamicsRunner, Walker2dEnv):
    """Walker2d-v5 of other dynamics: see :class:`RandomDynamicsRunner`."""


class HopperRandomDynamics(RandomDynamicsRunner, HopperEnv):
    """Hopper-v5 of other dynamics: see :class:`RandomDynamicsRunner`."""


class RandomDynamicsVector(FallingVector):
    """A batch of one kind of :class:`RandomDynamicsRunner`, all of the same dynamics."""

    velocity_limit = 10.0

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self.dynamics: Dynamics = env.dynamics
        self._low_angle, self._high_angle = env._healthy_angle_range

    def healthy(self) -> Bool:
        """(K,) torso at a healthy height and angle."""
        z, angle = self.positions[:, 1], self.positions[:, 2]
        upright = (self._low_angle < angle) & (angle < self._high_angle)
        healthy: Bool = (self._low_z < z) & (z < self._high_z) & upright
        return healthy


class Walker2dRandomDynamicsVector(RandomDynamicsVector):
    """A batch of :class:`Walker2dRandomDynamics`."""

    single = Walker2dRandomDynamics


class HopperRandomDynamicsVector(RandomDynamicsVector):
    """A batch of :class:`HopperRandomDynamics`."""

    single = HopperRandomDynamics

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._low_state, self._high_state = env._healthy_state_range

    def healthy(self) -> Bool:
        """(K,) every coordinate but the first two within bounds as well."""
        healthy = super().healthy()
        for values in (self.positions[:, 2:], self.velocities):
            healthy &= np.maximum.reduce(values, axis=1) < self._high_state
            healthy &= np.minimum.reduce(values, axis=1) > self._low_state
        return healthy


class RandomDynamicsTasks(RunnerTasks):
    """Other dynamics for each task: every multiplier is drawn by itself.

    A task's parameters are the multipliers, all of them. Tasks are points of a space of dozens of
    dimensions: those of another stream of random numbers, as evaluation draws, are other tasks
    with probability one, and nothing need be held out.

    Args:
        log_scale_limit: multipliers lie between ``base**-limit`` and ``base**limit``; base 1.5,
            and 1.3 for damping.
        control_cost: weight on the squared action.
        torso_position: observe the torso's position too.
    """

    @validate_call
    def __init__(
        self,
        *,
        log_scale_limit: Option[NonNegative] = 3.0,
        control_cost: Option[NonNegative] = CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost=control_cost, torso_position=torso_position)
        self.log_scale_limit = log_scale_limit
        single: Any = self.vector.single
        env = single()
        self._dynamics: Dynamics = env.dynamics  # of a model of its own: names, and their check
        env.close()

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Multipliers of ``count`` tasks."""
        names, limit = self._dynamics.names, self.log_scale_limit
        return tuple(self._task(sampled_multipliers(rng, names, limit)) for _ in range(count))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The task of ``{"mass/torso": 2.0}``: multipliers left out are 1."""
        given = self._dynamics.check(parameters)
        name = ", ".join(f"{key} {value:g}" for key, value in given.items())
        multipliers = {key: given.get(key, 1.0) for key in self._dynamics.names}
        return self._task(multipliers, name if len(given) <= 2 else None)

    @staticmethod
    def _task(multipliers: Mapping[str, float], name: str | None = None) -> Task:
        parameters = tuple(multipliers.items())
        if name is None:  # too many to read: a short name that tells tasks apart
            name = f"dynamics {zlib.crc32(repr(parameters).encode()):08x}"
        return Task(name or "dynamics as they came", parameters)

    def keywords(self, task: Task) -> dict[str, Any]:
        """The multipliers."""
        return {"dynamics": dict(task.parameters)}

    def turn(self, env: Any, task: Task) -> None:
        """Other multipliers for the one model of all simulations."""
        env.dynamics.apply(dict(task.parameters))


class Walker2dRandomDynamicsTasks(RandomDynamicsTasks):
    """Walkers of other dynamics: see :class:`RandomDynamicsTasks`."""

    vector = Walker2dRandomDynamicsVector


class HopperRandomDynamicsTasks(RandomDynamicsTasks):
    """Hoppers of other dynamics: see :class:`RandomDynamicsTasks`."""

    vector = HopperRandomDynamicsVector
