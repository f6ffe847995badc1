"""Tasks, distributions over tasks, and how a name in the settings becomes one."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.config import SettingsError

BUILT_IN: Mapping[str, str] = {
    "half-cheetah-backward": "maml_ray.tasks.half_cheetah:HalfCheetahBackwardTasks",
}
"""Names that ``task.name`` may take; any other ``"module:Class"`` may stand there too."""


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

    A subclass has a constructor without arguments and need only sample tasks and make one
    environment; the batched environment is then Gymnasium's synchronous one. Override
    :meth:`make_vector_env` where the simulations can be stepped faster together.
    """

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks, using no randomness but ``rng``."""

    @abstractmethod
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment of ``task`` that is truncated after ``horizon`` steps."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """``num_envs`` environments of ``task`` behind one ``step``, with autoreset."""
        return gym.vector.SyncVectorEnv(
            [lambda: self.make_env(task, horizon=horizon)] * num_envs,
            autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
        )


def resolve_tasks(name: str) -> TaskDistribution:
    """The task distribution called ``name``: a built-in name, or ``"module:Class"``.

    Raises:
        SettingsError: there is no such name, module or class, or it is not a distribution.
    """
    target = BUILT_IN.get(name, name)
    module_name, separator, class_name = target.partition(":")
    if not separator or not module_name or not class_name:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise SettingsError(
            f"task.name = {name!r} is not known{hint} "
            f"(built in: {', '.join(sorted(BUILT_IN))}; your own: 'module:Class')"
        )
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"task.name = {name!r} cannot be loaded: {error}") from None
    if not (isinstance(factory, type) and issubclass(factory, TaskDistribution)):
        raise SettingsError(f"task.name = {name!r} is not a subclass of maml_ray.TaskDistribution")
    try:
        return factory()
    except TypeError as error:
        raise SettingsError(
            f"task.name = {name!r} cannot be made without arguments: {error}"
        ) from None
