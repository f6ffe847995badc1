"""Create the task distribution that the settings name."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from maml_ray.config.error_messages import describe_validation_error, did_you_mean
from maml_ray.config.settings import SettingsError, TaskSettings
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import TaskDistribution
from maml_ray.tasks.task_observation import ObservedParametersTasks


def resolve_tasks(settings: TaskSettings) -> TaskDistribution:
    """Create the task distribution of ``settings``: a built-in family or ``"module:Class"``.

    Raises:
        SettingsError: the name cannot be imported or is no distribution, an option is not allowed,
            or parameters are to be observed and the tasks have none.
    """
    tasks = _create(_import_class(settings.name), settings.name, settings.options)
    if settings.observe_parameters:
        return ObservedParametersTasks(tasks, settings.name)
    return tasks


def _import_class(name: str) -> type[TaskDistribution]:
    path = f"{TASK_FAMILIES[name].path}Tasks" if name in TASK_FAMILIES else name
    module_name, separator, class_name = path.partition(":")
    if not separator or not module_name or not class_name:
        raise SettingsError(
            f"task.name = {name!r:.80} is not known{did_you_mean(name, TASK_FAMILIES)} "
            f"(built in: {', '.join(sorted(TASK_FAMILIES))}; your own: 'module:Class')"
        )
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module may raise anything
        raise SettingsError(
            f"task.name = {name!r:.80} cannot be loaded: {_describe(error)}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, TaskDistribution)):
        raise SettingsError(
            f"task.name = {name!r:.80} is not a subclass of maml_ray.TaskDistribution"
        )
    return cls


def _create(cls: type[TaskDistribution], name: str, options: Mapping[str, Any]) -> TaskDistribution:
    known = _option_names(cls)
    for key in options:
        if known is not None and key not in known:
            raise SettingsError(
                f"task.options.{key} is not an option of {name}{did_you_mean(key, known)} "
                f"(there are: {', '.join(known) or 'none'})"
            )
    try:
        return cls(**options)
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, prefix=("task", "options"))) from None
    except ValueError as error:
        raise SettingsError(f"task.options are not allowed: {error}") from None
    except Exception as error:  # a user's class may raise anything
        raise SettingsError(
            f"task.name = {name!r:.80} cannot be created with task.options = "
            f"{dict(options)!r:.80}: {_describe(error)}"
        ) from error


def _describe(error: Exception) -> str:
    """Return the type and message of an error in a user's code, and its file and line."""
    message = f"{type(error).__name__}: {str(error)[:200]}"
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [frame for frame in frames if "importlib" not in frame.filename][1:]
    if not user_frames:
        return message
    return f"{message} ({user_frames[-1].filename}, line {user_frames[-1].lineno})"


def _option_names(cls: type[TaskDistribution]) -> list[str] | None:
    """Return the names of the constructor's keyword arguments; None if it takes any."""
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]
