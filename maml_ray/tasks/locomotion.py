"""Distributions over tasks of a runner: how a task becomes environments, one or a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from maml_ray.common.numbers import finite_floats
from maml_ray.envs.gym_registration import env_id
from maml_ray.envs.locomotion import RunnerVector
from maml_ray.envs.rewards import Direction, Goal, TargetSpeed
from maml_ray.tasks.held_out import in_turn, uniform_held_out, uniform_trained
from maml_ray.tasks.task import Task, TaskDistribution


class RunnerTasks(TaskDistribution):
    """What the distributions of one kind of runner share.

    Args:
        shared: keywords of the environment that do not depend on the task.
    """

    vector: ClassVar[type[RunnerVector]]

    def __init__(self, **shared: Any) -> None:
        self._shared = shared

    @abstractmethod
    def keywords(self, task: Task) -> dict[str, Any]:
        """The keywords of the environment that make it one of ``task``."""

    @abstractmethod
    def turn(self, env: Any, task: Task) -> None:
        """Turn a batch, of :attr:`vector`, to ``task``."""

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment, through ``gymnasium.make``."""
        keywords: dict[str, Any] = {**self.keywords(task), **self._shared}
        return gym.make(
            env_id(self.vector.single.__name__),
            max_episode_steps=horizon,
            render_mode=render_mode,
            **keywords,
        )

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The batched simulation."""
        return self.vector(
            num_envs,
            max_episode_steps=horizon,
            autoreset_mode=AutoresetMode.DISABLED,
            **self.keywords(task),
            **self._shared,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Another task for the same simulations."""
        assert isinstance(env, self.vector)
        self.turn(env, task)
        return True


class GoalTasks(RunnerTasks):
    """Tasks that differ in the goal alone."""

    @abstractmethod
    def goal(self, task: Task) -> Goal:
        """What ``task`` asks for."""

    def turn(self, env: Any, task: Task) -> None:
        """Another goal for the same simulations."""
        env.goal = self.goal(task)


class DirectionTasks(GoalTasks):
    """Two tasks that pull in opposite directions, ``{"direction": 1}`` and ``{"direction": -1}``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3. A meta-batch holds each
    equally often. With two tasks in all, none can be held out.
    """

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

    def goal(self, task: Task) -> Goal:
        """As fast as can be in the direction."""
        return Direction(dict(task.parameters)["direction"])

    def keywords(self, task: Task) -> dict[str, Any]:
        """The direction."""
        return {"direction": dict(task.parameters)["direction"]}


class VelocityTasks(GoalTasks):
    """Run at a given speed, ``{"speed": 1.5}``, drawn uniformly from a range.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3. A fifth of the range, in
    slices, is held out for evaluation.

    Args:
        speed_range: lowest and highest target speed in m/s.
        shared: keywords of the environment that do not depend on the task.

    Raises:
        ValueError: the range is empty.
    """

    bonus: ClassVar[float] = 0.0
    """Of the goal, per step."""

    def __init__(self, speed_range: tuple[float, float], **shared: Any) -> None:
        super().__init__(**shared)
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
        """The task of ``{"speed": 1.5}``, any finite speed."""
        if set(parameters) != {"speed"}:
            raise ValueError('a task is {"speed": <m/s>}')
        return self._task(finite_floats(parameters)["speed"])

    @staticmethod
    def _task(speed: float) -> Task:
        return Task(f"{speed:.2f} m/s", (("speed", float(speed)),))

    def goal(self, task: Task) -> Goal:
        """The speed, and the family's bonus."""
        return TargetSpeed(dict(task.parameters)["speed"], self.bonus)

    def keywords(self, task: Task) -> dict[str, Any]:
        """The target speed."""
        return {"target_speed": dict(task.parameters)["speed"]}
