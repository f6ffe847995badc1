"""Create the task distribution that the settings name."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle
from pydantic import ValidationError

from maml_ray.config.error_messages import describe_validation_error, did_you_mean
from maml_ray.config.settings import Settings, SettingsError, TaskSettings
from maml_ray.tasks.gymnasium_tasks import GymnasiumTasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import TaskDistribution
from maml_ray.tasks.task_observation import ObservedParametersTasks

OwnTasks = TaskDistribution | type[TaskDistribution]
"""Tasks given in Python: an instance, or a class that is created without arguments."""

_GIVEN_IN_PYTHON = "python:"
"""``task.name`` of such tasks begins with it: settings cannot hold them."""


def resolve_tasks(settings: TaskSettings, own: OwnTasks | None = None) -> TaskDistribution:
    """Create the task distribution of ``settings``.

    Args:
        settings: name a built-in family, ``"module:Class"`` or a Gymnasium environment.
        own: tasks given in Python, which the settings only record: see :func:`record_own_tasks`.

    Raises:
        SettingsError: the name cannot be imported or is no distribution, an option is not allowed,
            parameters are to be observed and the tasks have none, or the settings record tasks
            given in Python and ``own`` is missing.
    """
    tasks = _create_named(settings) if own is None else _create_own(own)
    if settings.observe_parameters:
        return ObservedParametersTasks(tasks, settings.name)
    return tasks


def record_own_tasks(settings: Settings, own: OwnTasks | None) -> Settings:
    """Return settings that record tasks given in Python; unchanged if there are none.

    Their name replaces what the settings say of other tasks.

    Raises:
        SettingsError: ``own`` is not a task distribution, cannot be created without arguments or
            cannot be sent to other processes.
    """
    if own is None:
        return settings
    cls = own if isinstance(own, type) else type(own)
    if not issubclass(cls, TaskDistribution):
        raise SettingsError(
            f"tasks = {own!r:.80} is not allowed: give a subclass of maml_ray.TaskDistribution, "
            "or an instance of one"
        )
    _create_own(own)
    try:
        cloudpickle.dumps(own)
    except Exception as error:  # a user's object may raise anything
        raise SettingsError(
            f"tasks = {cls.__name__} cannot be sent to rollout actors "
            f"({type(error).__name__}: {str(error)[:200]}): create what cannot be pickled in "
            "make_env"
        ) from error
    task = TaskSettings(
        name=f"{_GIVEN_IN_PYTHON}{cls.__name__}",
        horizon=settings.task.horizon,
        observe_parameters=settings.task.observe_parameters,
    )
    return settings.model_copy(update={"task": task})


@dataclass(frozen=True)
class PickledTasks:
    """Tasks given in Python, to be sent to another process that may lack their module.

    Attributes:
        content: pickled by cloudpickle: by value what was defined in a notebook or a script.
        import_path: ``sys.path`` of the sender, where their module may lie.
    """

    content: bytes
    import_path: tuple[str, ...]

    @classmethod
    def of(cls, own: OwnTasks) -> PickledTasks:
        """Pickle ``own``."""
        return cls(cloudpickle.dumps(own), tuple(sys.path))

    def load(self) -> OwnTasks:
        """Return the tasks, after appending what ``sys.path`` lacks of the sender's.

        Raises:
            Exception: whatever importing their module raises here.
        """
        sys.path += [entry for entry in self.import_path if entry not in sys.path]
        own: OwnTasks = cloudpickle.loads(self.content)
        return own


def _create_own(own: OwnTasks) -> TaskDistribution:
    if not isinstance(own, type):
        return own
    try:
        return own()
    except Exception as error:  # a user's class may raise anything
        raise SettingsError(
            f"tasks = {own.__name__} cannot be created without arguments "
            f"({describe_user_error(error)}): give an instance, tasks={own.__name__}(...)"
        ) from error


def _create_named(settings: TaskSettings) -> TaskDistribution:
    if settings.env is not None:
        return GymnasiumTasks(settings.env, settings.ranges, settings.options)
    if settings.name.startswith(_GIVEN_IN_PYTHON):
        cls = settings.name.removeprefix(_GIVEN_IN_PYTHON)
        raise SettingsError(
            f"the tasks of this run were given in Python (task.name = {settings.name!r:.80}): give "
            f"them again, maml_ray.load(RUN, tasks={cls:.80}) or "
            f"maml_ray.train(resume=RUN, tasks={cls:.80})"
        )
    return _create(_import_class(settings.name), settings.name, settings.options)


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
            f"task.name = {name!r:.80} cannot be loaded: {describe_user_error(error)}"
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
            f"{dict(options)!r:.80}: {describe_user_error(error)}"
        ) from error


def describe_user_error(error: Exception) -> str:
    """Return the type and message of an error in a user's code, and its file and line."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
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
