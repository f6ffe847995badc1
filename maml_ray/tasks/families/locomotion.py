"""Task distributions of locomotion environments: how a task becomes one environment or a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from maml_ray.common.numbers import finite_floats
from maml_ray.envs.locomotion import LocomotionVectorEnv
from maml_ray.tasks.held_out import balanced_choice, uniform_held_out, uniform_training
from maml_ray.tasks.registry import env_id
from maml_ray.tasks.task import Task, TaskDistribution


class LocomotionTasks(TaskDistribution):
    """Base class of distributions over tasks of one kind of animal.

    Args:
        env_kwargs: keyword arguments of the environment that all tasks share.
    """

    vector: ClassVar[type[LocomotionVectorEnv]]

    def __init__(self, **env_kwargs: Any) -> None:
        self._env_kwargs = env_kwargs

    @abstractmethod
    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Return the environment's keyword arguments that depend on ``task``."""

    @abstractmethod
    def set_task(self, env: Any, task: Task) -> None:
        """Assign ``task`` to a batch of :attr:`vector`."""

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create one environment by ``gymnasium.make``."""
        kwargs: dict[str, Any] = {**self.task_kwargs(task), **self._env_kwargs}
        return gym.make(
            env_id(self.vector.single.__name__),
            max_episode_steps=horizon,
            render_mode=render_mode,
            **kwargs,
        )

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create a batched simulation."""
        return self.vector(
            num_envs,
            max_episode_steps=horizon,
            autoreset_mode=AutoresetMode.DISABLED,
            **self.task_kwargs(task),
            **self._env_kwargs,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Assign ``task`` to the same simulations."""
        assert isinstance(env, self.vector)
        self.set_task(env, task)
        return True


class GoalTasks(LocomotionTasks):
    """Tasks that differ in the goal only; ``vector.single`` has a class method ``make_goal``."""

    def set_task(self, env: Any, task: Task) -> None:
        """Assign the goal of ``task``."""
        single: Any = self.vector.single
        env.goal = single.make_goal(**self.task_kwargs(task))


class DirectionTasks(GoalTasks):
    """Two opposite tasks, ``{"direction": 1}`` and ``{"direction": -1}``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3. A meta-batch contains each
    equally often. None can be held out of two.
    """

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw both directions equally often, in random order."""
        return tuple(map(self._task, balanced_choice(rng, (1.0, -1.0), count)))

    def named_tasks(self) -> tuple[Task, ...]:
        """Return both: ``forward`` and ``backward``."""
        return (self._task(1.0), self._task(-1.0))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task of ``{"direction": 1}`` or ``{"direction": -1}``."""
        if set(parameters) != {"direction"} or parameters["direction"] not in (1, -1):
            raise ValueError('a task is {"direction": 1} or {"direction": -1}')
        return self._task(float(parameters["direction"]))

    @staticmethod
    def _task(direction: float) -> Task:
        return Task("forward" if direction > 0 else "backward", (("direction", direction),))

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Return the direction."""
        return {"direction": dict(task.parameters)["direction"]}


class VelocityTasks(GoalTasks):
    """Target speeds, ``{"speed": 1.5}`` in m/s, uniform on a range.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3. A fifth of the range, in
    slices, is held out for evaluation.

    Args:
        speed_range: lowest and highest target speed in m/s.
        env_kwargs: keyword arguments of the environment that all tasks share.

    Raises:
        ValueError: the range is empty.
    """

    def __init__(self, speed_range: tuple[float, float], **env_kwargs: Any) -> None:
        super().__init__(**env_kwargs)
        if not speed_range[0] < speed_range[1]:
            raise ValueError(f"speed_range must go from low to high, got {list(speed_range)}")
        self.speed_range = speed_range

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw target speeds from the four fifths of the range for training."""
        return tuple(map(self._task, uniform_training(rng, *self.speed_range, count)))

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw target speeds from the fifth of the range that is held out."""
        return tuple(map(self._task, uniform_held_out(rng, *self.speed_range, count)))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task of ``{"speed": 1.5}``, any finite speed in m/s."""
        if set(parameters) != {"speed"}:
            raise ValueError('a task is {"speed": <m/s>}')
        return self._task(finite_floats(parameters)["speed"])

    @staticmethod
    def _task(speed: float) -> Task:
        return Task(f"{speed:.2f} m/s", (("speed", float(speed)),))

    def task_kwargs(self, task: Task) -> dict[str, Any]:
        """Return the target speed."""
        return {"speed": dict(task.parameters)["speed"]}
