"""Half-cheetahs with goals: environments, batches and task distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.utils import EzPickle
from pydantic import validate_call

from maml_ray.config.value_types import Finite, NonNegative, Option
from maml_ray.envs.locomotion import (
    DirectionEnv,
    LocomotionEnv,
    LocomotionVectorEnv,
    VelocityEnv,
)
from maml_ray.envs.rewards import Direction, Goal
from maml_ray.tasks.families.locomotion import DirectionTasks, GoalTasks, VelocityTasks
from maml_ray.tasks.task import Task

NOTEBOOK_CONTROL_COST = 0.05 * 0.1
"""The source notebook's: 0.05 times Gymnasium's own, which is 0.1."""
PAPER_CONTROL_COST = 0.05
"""The papers', ``0.5 * 1e-1``: Finn et al. 2017 and, after them, ProMP and RLlib."""


class HalfCheetahGoalEnv(LocomotionEnv, HalfCheetahEnv):
    """HalfCheetah-v5 with a goal; a control step is 0.05 s, and episodes never terminate.

    Args:
        goal: the task-dependent part of the reward.
        control_cost: weight of the squared action.
        kwargs: ``torso_position`` of :class:`LocomotionEnv`, and those of ``HalfCheetah-v5``.
    """

    def __init__(
        self, goal: Goal, *, control_cost: float = PAPER_CONTROL_COST, **kwargs: Any
    ) -> None:
        super().__init__(goal, control_cost=control_cost, **kwargs)


class HalfCheetahBackward(HalfCheetahGoalEnv):
    """The half-cheetah that must run backward: the source notebook's task.

    Args:
        control_cost: weight of the squared action.
        kwargs: of :class:`HalfCheetahGoalEnv`.
    """

    def __init__(self, *, control_cost: float = NOTEBOOK_CONTROL_COST, **kwargs: Any) -> None:
        super().__init__(self.make_goal(), control_cost=control_cost, **kwargs)
        EzPickle.__init__(self, control_cost=control_cost, **kwargs)

    @classmethod
    def make_goal(cls) -> Goal:
        """Create the goal of running backward."""
        return Direction(-1.0)


class HalfCheetahDirection(DirectionEnv, HalfCheetahGoalEnv):
    """The half-cheetah that must run forward or backward: see :class:`DirectionEnv`."""


class HalfCheetahVelocity(VelocityEnv, HalfCheetahGoalEnv):
    """The half-cheetah that must run at a target speed: see :class:`VelocityEnv`."""


class HalfCheetahBackwardVector(LocomotionVectorEnv):
    """A batch of :class:`HalfCheetahBackward`."""

    single = HalfCheetahBackward


class HalfCheetahDirectionVector(LocomotionVectorEnv):
    """A batch of :class:`HalfCheetahDirection` in one direction."""

    single = HalfCheetahDirection


class HalfCheetahVelocityVector(LocomotionVectorEnv):
    """A batch of :class:`HalfCheetahVelocity` at one target speed."""

    single = HalfCheetahVelocity


class HalfCheetahBackwardTasks(GoalTasks):
    """The distribution with one task: run backward.

    Meta-learning on it finds parameters from which one policy-gradient step runs backward well.
    It is the source notebook's, and the quickest test of the whole system. As there, the control
    cost is of the actions as sampled, which MuJoCo alone clips.

    Args:
        control_cost: weight of the squared action.
        torso_position: also observe the torso's position.
    """

    vector = HalfCheetahBackwardVector
    action_bounds = "none"

    @validate_call
    def __init__(
        self,
        *,
        control_cost: Option[NonNegative] = NOTEBOOK_CONTROL_COST,
        torso_position: Option[bool] = False,
    ) -> None:
        super().__init__(control_cost=control_cost, torso_position=torso_position)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Return the one task ``count`` times."""
        return self.named_tasks() * count

    def named_tasks(self) -> tuple[Task, ...]:
        """Return the one task, ``backward``."""
        return (Task("backward"),)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the one task, which has no parameters."""
        if parameters:
            raise ValueError("there is one task, and it has no parameters: {}")
        return Task("backward")

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Return none: the environment has one task."""
        return {}


class HalfCheetahDirectionTasks(DirectionTasks):
    """Run forward, or run backward: see :class:`DirectionTasks`.

    Args:
        control_cost: weight of the squared action; the papers' by default.
        torso_position: also observe the torso's position, as the papers did.
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
    """Run at a target speed, in the paper 0 to 2 m/s: see :class:`VelocityTasks`.

    Args:
        speed_range: lowest and highest target speed in m/s.
        control_cost: weight of the squared action; the papers' by default.
        torso_position: also observe the torso's position, as the papers did.

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
