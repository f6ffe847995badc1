"""Define tasks and the interface of task distributions."""

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

    A subclass must sample tasks and create one environment; a batch is then Gymnasium's
    synchronous vector environment. Override :meth:`make_vector_env` for simulations that can be
    stepped faster together, and :meth:`retarget` for batches that can switch to another task. The
    constructor is called with ``task.options`` as keyword arguments, each with a default.
    """

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to train on, with no randomness except ``rng``."""

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to evaluate on, if possible none that :meth:`sample` draws.

        By default, and for families of a few tasks, the same as :meth:`sample`.
        """
        return self.sample(rng, count)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task with ``parameters``, as given on the command line.

        Raises:
            ValueError: there is no such task; the message says which there are.
        """
        values = finite_floats(parameters)
        name = ", ".join(f"{key} {value:g}" for key, value in values.items())
        return Task(name or "default", tuple(values.items()))

    @abstractmethod
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create an environment of ``task`` that truncates episodes after ``horizon`` steps."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create a batch of ``num_envs`` environments of ``task``, with autoreset."""
        return gym.vector.SyncVectorEnv(
            [lambda: self.make_env(task, horizon=horizon)] * num_envs,
            autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Switch ``env``, created by :meth:`make_vector_env`, to another task if possible.

        Rollout actors get tasks in any order; this avoids creating environments for each.

        Returns:
            False, with ``env`` unchanged, if a new batch must be created.
        """
        return False
