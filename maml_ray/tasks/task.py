"""Tasks, and distributions over tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.common.numbers import finite_floats


@dataclass(frozen=True)
class Task:
    """One task of a distribution.

    Attributes:
        name: short and readable, for logs and reports.
        parameters: what distinguishes it from the distribution's other tasks.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()


class TaskDistribution(ABC):
    """A family of tasks that share observation and action spaces.

    A subclass need only sample tasks and make one environment; the batched environment is then
    Gymnasium's synchronous one. Override :meth:`make_vector_env` where the simulations can be
    stepped faster together, and :meth:`retarget` where a batch can be turned to another task.
    Its constructor is called with ``task.options``: keywords, each with a default.
    """

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to train on, using no randomness but ``rng``."""

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to evaluate on: none that :meth:`sample` gives, where that can be.

        By default, and where there are only a few tasks in all, the same as :meth:`sample`.
        """
        return self.sample(rng, count)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The task with ``parameters``, as a person names it on the command line.

        Raises:
            ValueError: there is no such task; the sentence says what there is.
        """
        values = finite_floats(parameters)
        name = ", ".join(f"{key} {value:g}" for key, value in values.items())
        return Task(name or "default", tuple(values.items()))

    @abstractmethod
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment of ``task`` that is truncated after ``horizon`` steps."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """``num_envs`` environments of ``task`` behind one ``step``, with autoreset."""
        return gym.vector.SyncVectorEnv(
            [lambda: self.make_env(task, horizon=horizon)] * num_envs,
            autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Turn ``env``, of :meth:`make_vector_env`, to another task; False if it takes a new one.

        A rollout actor is handed tasks in any order: what this keeps need not be built again.
        """
        return False
