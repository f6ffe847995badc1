"""Walkers and hoppers with random masses, inertias, damping and friction.

Rothfuss et al. 2019, ProMP (https://arxiv.org/abs/1810.06784), after rand_param_envs. The reward is
the one there: forward speed, plus 1 in each step, also in the one that ends the episode, minus
``1e-3 * |action|^2``. Gymnasium's version 5 leaves the 1 out when the animal falls.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.utils import EzPickle
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.config.value_types import NonNegative, Option
from maml_ray.envs.locomotion import FallingVectorEnv, LocomotionEnv, Terms
from maml_ray.envs.model_randomizer import ModelRandomizer, sample_multipliers
from maml_ray.envs.mujoco_state import State
from maml_ray.envs.rewards import Direction
from maml_ray.envs.vector_env import Bool
from maml_ray.tasks.families.locomotion import LocomotionTasks
from maml_ray.tasks.task import Task

CONTROL_COST = 1e-3
"""Gymnasium's own, and the papers'."""


class RandomDynamicsEnv(LocomotionEnv):
    """A Gymnasium animal that can fall, with other dynamics: see :class:`LocomotionEnv`.

    The reward adds Gymnasium's bonus in each step, as ``reward_survive``.

    Args:
        dynamics: multipliers by name, see :class:`ModelRandomizer`; missing ones are 1.
            ``env.dynamics.apply`` changes them between episodes.
        control_cost: weight of the squared action.
        kwargs: of :class:`LocomotionEnv` and the Gymnasium class.

    Raises:
        ValueError: a multiplier's name is unknown, or it is not a positive number.
    """

    dropped_infos = ("z_distance_from_origin",)

    def __init__(
        self,
        *,
        dynamics: Mapping[str, float] | None = None,
        control_cost: float = CONTROL_COST,
        **kwargs: Any,
    ) -> None:
        multipliers = dict(dynamics or {})
        super().__init__(Direction(1.0), control_cost=control_cost, **kwargs)
        self.dynamics = ModelRandomizer(self.model)
        self.dynamics.apply(multipliers)
        EzPickle.__init__(self, dynamics=multipliers, control_cost=control_cost, **kwargs)

    def _get_rew(self, x_velocity: Any, action: NDArray[Any]) -> tuple[Any, Terms]:
        _, terms = super()._get_rew(x_velocity, action)
        bonus = terms["reward_survive"] = self._healthy_reward
        return (terms["reward_run"] + bonus) + terms["reward_control"], terms


class Walker2dRandomDynamics(RandomDynamicsEnv, Walker2dEnv):
    """Walker2d-v5 with other dynamics: see :class:`RandomDynamicsEnv`."""


class HopperRandomDynamics(RandomDynamicsEnv, HopperEnv):
    """Hopper-v5 with other dynamics: see :class:`RandomDynamicsEnv`."""


class RandomDynamicsVectorEnv(FallingVectorEnv):
    """A batch of one kind of :class:`RandomDynamicsEnv` with the same dynamics."""

    velocity_limit = 10.0

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self.dynamics: ModelRandomizer = env.dynamics
        self._low_angle, self._high_angle = env._healthy_angle_range

    def is_healthy(self, state: State) -> Bool:
        """Return which torsos (...) are at a healthy height and angle."""
        z, angle = state.positions[..., 1], state.positions[..., 2]
        upright = (self._low_angle < angle) & (angle < self._high_angle)
        healthy: Bool = (self._low_z < z) & (z < self._high_z) & upright
        return healthy


class Walker2dRandomDynamicsVector(RandomDynamicsVectorEnv):
    """A batch of :class:`Walker2dRandomDynamics`."""

    single = Walker2dRandomDynamics


class HopperRandomDynamicsVector(RandomDynamicsVectorEnv):
    """A batch of :class:`HopperRandomDynamics`."""

    single = HopperRandomDynamics

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        env: Any = self._env
        self._low_state, self._high_state = env._healthy_state_range

    def is_healthy(self, state: State) -> Bool:
        """Also require all coordinates except the first two to be within bounds."""
        healthy = super().is_healthy(state)
        for values in (state.positions[..., 2:], state.velocities):
            healthy &= np.maximum.reduce(values, axis=-1) < self._high_state
            healthy &= np.minimum.reduce(values, axis=-1) > self._low_state
        return healthy


class RandomDynamicsTasks(LocomotionTasks):
    """Random dynamics: each multiplier is drawn independently, and all are a task's parameters.

    The space of tasks has dozens of dimensions. Another random stream, which evaluation uses,
    draws other tasks with probability one, so nothing need be held out.

    Args:
        log_scale_limit: multipliers lie between ``base**-limit`` and ``base**limit``; the base is
            1.5, and 1.3 for damping.
        control_cost: weight of the squared action.
        torso_position: also observe the torso's position.
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
        self._dynamics: ModelRandomizer = env.dynamics  # knows and validates the names
        env.close()

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw the multipliers of ``count`` tasks."""
        names, limit = self._dynamics.names, self.log_scale_limit
        return tuple(self._task(sample_multipliers(rng, names, limit)) for _ in range(count))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task of multipliers such as ``{"mass/torso": 2.0}``; missing ones are 1."""
        scaled = self._dynamics.validate(parameters)
        name = ", ".join(f"{key} {value:g}" for key, value in scaled.items())
        multipliers = {key: scaled.get(key, 1.0) for key in self._dynamics.names}
        return self._task(multipliers, name if len(scaled) <= 2 else None)

    @staticmethod
    def _task(multipliers: Mapping[str, float], name: str | None = None) -> Task:
        parameters = tuple(multipliers.items())
        if name is None:  # too many to list: a short unique name
            name = f"dynamics {zlib.crc32(repr(parameters).encode()):08x}"
        return Task(name or "original dynamics", parameters)

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Return the multipliers."""
        return {"dynamics": dict(task.parameters)}

    def set_task(self, env: Any, task: Task) -> None:
        """Apply the multipliers to the model that all simulations share."""
        env.dynamics.apply(dict(task.parameters))


class Walker2dRandomDynamicsTasks(RandomDynamicsTasks):
    """Walkers with random dynamics: see :class:`RandomDynamicsTasks`."""

    vector = Walker2dRandomDynamicsVector


class HopperRandomDynamicsTasks(RandomDynamicsTasks):
    """Hoppers with random dynamics: see :class:`RandomDynamicsTasks`."""

    vector = HopperRandomDynamicsVector
