"""Half-cheetahs with something to do: single environments, their batches, task distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from pydantic import validate_call

from maml_ray.config.settings import Finite, NonNegative, Option
from maml_ray.envs.gym_registration import env_id
from maml_ray.envs.locomotion import Runner, RunnerVector
from maml_ray.envs.rewards import Direction, Goal, TargetSpeed
from maml_ray.tasks.locomotion import DirectionTasks, GoalTasks, VelocityTasks
from maml_ray.tasks.task import Task

BACKWARD_ID = env_id("HalfCheetahBackward")
DIRECTION_ID = env_id("HalfCheetahDirection")
VELOCITY_ID = env_id("HalfCheetahVelocity")

NOTEBOOK_CONTROL_COST = 0.05 * 0.1
"""The source notebook's: 0.05 times Gymnasium's own, which is 0.1."""
PAPER_CONTROL_COST = 0.05
"""The papers', ``0.5 * 1e-1``: Finn et al. 2017 and, after them, ProMP and RLlib."""


class HalfCheetahRunner(Runner, HalfCheetahEnv):
    """HalfCheetah-v5 with a goal: see :class:`Runner`. A control step is 0.05 s; it never falls."""


class HalfCheetahBackward(HalfCheetahRunner):
    """The half-cheetah that is to run backward: the source notebook's task.

    Args:
        control_cost: see :class:`Runner`.
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
        keywords = {"control_cost": control_cost, "torso_position": torso_position, **kwargs}
        super().__init__(Direction(-1.0), **keywords)
        gym.utils.EzPickle.__init__(self, **keywords)


class HalfCheetahDirection(HalfCheetahRunner):
    """The half-cheetah that is to run forward (``direction`` 1) or backward (-1).

    Args:
        direction: 1 or -1.
        control_cost: see :class:`Runner`.
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
        keywords = {"control_cost": control_cost, "torso_position": torso_position, **kwargs}
        super().__init__(Direction(direction), **keywords)
        gym.utils.EzPickle.__init__(self, direction=direction, **keywords)


class HalfCheetahVelocity(HalfCheetahRunner):
    """The half-cheetah that is to run at a given speed.

    Args:
        target_speed: m/s forward.
        control_cost: see :class:`Runner`.
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
        keywords = {"control_cost": control_cost, "torso_position": torso_position, **kwargs}
        super().__init__(TargetSpeed(target_speed), **keywords)
        gym.utils.EzPickle.__init__(self, target_speed=target_speed, **keywords)


class HalfCheetahBackwardVector(RunnerVector):
    """A batch of :class:`HalfCheetahBackward`."""

    single = HalfCheetahBackward


class HalfCheetahDirectionVector(RunnerVector):
    """A batch of :class:`HalfCheetahDirection`, all in one direction."""

    single = HalfCheetahDirection


class HalfCheetahVelocityVector(RunnerVector):
    """A batch of :class:`HalfCheetahVelocity`, all at one target speed."""

    single = HalfCheetahVelocity


class HalfCheetahBackwardTasks(GoalTasks):
    """The distribution with one task: run backward.

    Meta-learning on it finds parameters from which one policy-gradient step runs backward well;
    it is the source notebook's, and the quickest trial of the whole machinery.

    Args:
        control_cost: weight on the squared action.
        torso_position: observe the torso's position too.
    """

    vector = HalfCheetahBackwardVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = NOTEBOOK_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost=control_cost, torso_position=torso_position)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """``count`` times the one task."""
        return (Task("backward"),) * count

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The one task, of no parameters."""
        if parameters:
            raise ValueError("there is one task, and it has no parameters: {}")
        return Task("backward")

    def goal(self, task: Task) -> Goal:
        """As fast as can be backward."""
        return Direction(-1.0)

    def keywords(self, task: Task) -> dict[str, Any]:
        """None: the environment knows no other task."""
        return {}


class HalfCheetahDirectionTasks(DirectionTasks):
    """Run forward, or run backward: see :class:`DirectionTasks`.

    Args:
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.
    """

    vector = HalfCheetahDirectionVector

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = PAPER_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost=control_cost, torso_position=torso_position)


class HalfCheetahVelocityTasks(VelocityTasks):
    """Run at a given speed, in the paper 0 to 2 m/s: see :class:`VelocityTasks`.

    Args:
        speed_range: lowest and highest target speed in m/s.
        control_cost: weight on the squared action; the papers' by default.
        torso_position: observe the torso's position too, as the papers did.

    Raises:
        ValueError: the range is empty.
    """

    vector = HalfCheetahVelocityVector

    @validate_call
    def __init__(
        self,
        *,
        speed_range: tuple[Option[Finite], Option[Finite]] = (0.0, 2.0),
        control_cost: Option[NonNegative] = PAPER_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(speed_range, control_cost=control_cost, torso_position=torso_position)
