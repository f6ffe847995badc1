"""Tasks, distributions over tasks, and how a name in the settings becomes one."""

from __future__ import annotations

import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from pydantic import ValidationError

from maml_ray.config import SettingsError, TaskSettings
from maml_ray.explanations import explain, nearest

BUILT_IN: Mapping[str, str] = {
    "half-cheetah-backward": "maml_ray.tasks.half_cheetah:HalfCheetahBackwardTasks",
    "half-cheetah-direction": "maml_ray.tasks.half_cheetah:HalfCheetahDirectionTasks",
    "half-cheetah-velocity": "maml_ray.tasks.half_cheetah:HalfCheetahVelocityTasks",
    "ant-direction": "maml_ray.tasks.ant:AntDirectionTasks",
    "ant-velocity": "maml_ray.tasks.ant:AntVelocityTasks",
    "walker2d-random-dynamics": "maml_ray.tasks.random_dynamics:Walker2dRandomDynamicsTasks",
    "hopper-random-dynamics": "maml_ray.tasks.random_dynamics:HopperRandomDynamicsTasks",
    "point-navigation": "maml_ray.tasks.point_navigation:PointNavigationTasks",
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
        values = finite(parameters)
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


def finite(parameters: Mapping[str, float]) -> dict[str, float]:
    """The parameters of a task as floats.

    Raises:
        ValueError: one of them is no number, not a number or infinite.
    """
    for name, value in parameters.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"the parameter {name} must be a finite number, got {value!r}")
    return {name: float(value) for name, value in parameters.items()}


def resolve_tasks(settings: TaskSettings) -> TaskDistribution:
    """The task distribution that ``settings`` name: a built-in name, or ``"module:Class"``.

    Raises:
        SettingsError: there is no such name, module or class, it is not a distribution, it does
            not take the options, or its tasks have no parameters that could be observed.
    """
    tasks = _made(_factory(settings.name), settings.name, settings.options)
    if not settings.observe_parameters:
        return tasks
    # It is a distribution itself, so it cannot be imported before this module is complete.
    from maml_ray.tasks.observed_parameters import ObservedParametersTasks

    return ObservedParametersTasks(tasks, settings.name)


def _factory(name: str) -> type[TaskDistribution]:
    """The class that a name in the settings stands for."""
    target = BUILT_IN.get(name, name)
    module_name, separator, class_name = target.partition(":")
    if not separator or not module_name or not class_name:
        raise SettingsError(
            f"task.name = {name!r} is not known{nearest(name, BUILT_IN)} "
            f"(built in: {', '.join(sorted(BUILT_IN))}; your own: 'module:Class')"
        )
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"task.name = {name!r} cannot be loaded: {error}") from None
    if not (isinstance(factory, type) and issubclass(factory, TaskDistribution)):
        raise SettingsError(f"task.name = {name!r} is not a subclass of maml_ray.TaskDistribution")
    return factory


def _made(
    factory: type[TaskDistribution], name: str, options: Mapping[str, Any]
) -> TaskDistribution:
    """The distribution with its options, or a sentence about the option that is wrong."""
    known = _keywords(factory)
    for key in options:
        if known is not None and key not in known:
            there = ", ".join(known) or "none"
            raise SettingsError(
                f"task.options.{key} is not an option of {name}{nearest(key, known)} "
                f"(there are: {there})"
            )
    try:
        return factory(**options)
    except ValidationError as error:
        raise SettingsError(explain(error, prefix=("task", "options"))) from None
    except ValueError as error:
        raise SettingsError(f"task.options are not allowed: {error}") from None
    except TypeError as error:
        raise SettingsError(
            f"task.name = {name!r} cannot be made with options {dict(options)}: {error}"
        ) from None


def _keywords(factory: type[TaskDistribution]) -> list[str] | None:
    """Names of the constructor's keywords; None where it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in takes]
