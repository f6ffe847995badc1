"""How a name in the settings becomes a task distribution."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from maml_ray.config.error_messages import describe_validation_error, did_you_mean
from maml_ray.config.settings import SettingsError, TaskSettings
from maml_ray.tasks.task import TaskDistribution
from maml_ray.tasks.task_observation import ObservedParametersTasks

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


def resolve_tasks(settings: TaskSettings) -> TaskDistribution:
    """The task distribution that ``settings`` name: a built-in name, or ``"module:Class"``.

    Raises:
        SettingsError: there is no such name, module or class, it is not a distribution, it does
            not take the options, or its tasks have no parameters that could be observed.
    """
    tasks = _made(_factory(settings.name), settings.name, settings.options)
    if settings.observe_parameters:
        return ObservedParametersTasks(tasks, settings.name)
    return tasks


def _factory(name: str) -> type[TaskDistribution]:
    """The class that a name in the settings stands for."""
    target = BUILT_IN.get(name, name)
    module_name, separator, class_name = target.partition(":")
    if not separator or not module_name or not class_name:
        raise SettingsError(
            f"task.name = {name!r:.80} is not known{did_you_mean(name, BUILT_IN)} "
            f"(built in: {', '.join(sorted(BUILT_IN))}; your own: 'module:Class')"
        )
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever a person's own module does while it is loaded
        raise SettingsError(f"task.name = {name!r:.80} cannot be loaded: {_told(error)}") from error
    if not (isinstance(factory, type) and issubclass(factory, TaskDistribution)):
        raise SettingsError(
            f"task.name = {name!r:.80} is not a subclass of maml_ray.TaskDistribution"
        )
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
                f"task.options.{key} is not an option of {name}{did_you_mean(key, known)} "
                f"(there are: {there})"
            )
    try:
        return factory(**options)
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, prefix=("task", "options"))) from None
    except ValueError as error:
        raise SettingsError(f"task.options are not allowed: {error}") from None
    except Exception as error:  # a person's own class
        raise SettingsError(
            f"task.name = {name!r:.80} cannot be made with task.options = "
            f"{dict(options)!r:.80}: {_told(error)}"
        ) from error


def _told(error: Exception) -> str:
    """What went wrong in a person's own code, and where."""
    words = f"{type(error).__name__}: {str(error)[:200]}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename][1:]
    return f"{words} ({own[-1].filename}, line {own[-1].lineno})" if own else words


def _keywords(factory: type[TaskDistribution]) -> list[str] | None:
    """Names of the constructor's keywords; None where it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in takes]
