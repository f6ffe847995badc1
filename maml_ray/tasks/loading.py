"""Create the task distribution that the settings name."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import cloudpickle
from pydantic import ValidationError

from maml_ray.common.locations import parse_location
from maml_ray.config.error_messages import describe_validation_error, did_you_mean
from maml_ray.config.sections import TaskSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.envs.user_errors import converted_errors, describe_user_error
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
    with converted_errors(
        lambda error: SettingsError(
            f"tasks = {own.__name__} cannot be created without arguments "
            f"({describe_user_error(error)}): give an instance, tasks={own.__name__}(...)"
        )
    ):
        return own()


def _create_named(settings: TaskSettings) -> TaskDistribution:
    if settings.env is not None:
        if settings.recorded_in is not None:
            _check_env_allowed(settings.env, settings.recorded_in)
        return GymnasiumTasks(settings.env, settings.ranges, settings.options)
    if settings.name.startswith(_GIVEN_IN_PYTHON):
        cls = settings.name.removeprefix(_GIVEN_IN_PYTHON)
        raise SettingsError(
            f"the tasks of this run were given in Python (task.name = {settings.name!r:.80}): give "
            f"them again, maml_ray.load(RUN, tasks={cls:.80}) or "
            f"maml_ray.train(resume=RUN, tasks={cls:.80})"
        )
    family = _import_class(settings.name, settings.recorded_in)
    return _create(family, settings.name, settings.options)


def _import_class(name: str, recorded_in: str | None) -> type[TaskDistribution]:
    """Return the class of a family by its name in the settings.

    Args:
        name: value of ``task.name``.
        recorded_in: folder of the run whose record names it; None if the user does.
    """
    path = f"{TASK_FAMILIES[name].path}Tasks" if name in TASK_FAMILIES else name
    module_name, separator, class_name = path.partition(":")
    if not separator or not module_name or not class_name:
        raise SettingsError(
            f"task.name = {name!r:.80} is not known{_suggestion(name)} "
            f"(built in: {', '.join(sorted(TASK_FAMILIES))}; your own: 'module:Class')"
        )
    if module_name == "__main__":
        raise SettingsError(
            f"task.name = {name!r:.80} is in the program itself, which rollout actors cannot "
            f"import: write maml_ray.train(tasks={class_name}), or move the class to a module"
        )
    if recorded_in is not None and name not in TASK_FAMILIES:
        _check_module_allowed(f"task.name = {name!r:.80}", module_name, recorded_in)
    with converted_errors(
        lambda error: SettingsError(
            f"task.name = {name!r:.80} cannot be loaded: {_import_problem(module_name, error)}"
        )
    ):
        module = importlib.import_module(module_name)
    cls = getattr(module, class_name, None)
    if cls is None:
        families = [key for key, value in vars(module).items() if _is_family(value)]
        raise SettingsError(
            f"task.name = {name!r:.80} cannot be loaded: {module.__file__ or module_name} has no "
            f"{class_name}{did_you_mean(class_name, families)}"
        )
    if not _is_family(cls):
        raise SettingsError(
            f"task.name = {name!r:.80} is not a subclass of maml_ray.TaskDistribution"
        )
    if recorded_in is not None and cls in (GymnasiumTasks, ObservedParametersTasks):
        # Their arguments, which the record has chosen, name modules.
        raise SettingsError(f"task.name = {name!r:.80} is not allowed: use task.env")
    return cls


def _suggestion(name: str) -> str:
    """Return the known or well-formed name that may be meant; empty if there is none."""
    module, dot, cls = name.rpartition(".")
    own = f"; did you mean '{module}:{cls}'?" if dot and ":" not in name else ""
    return did_you_mean(name, TASK_FAMILIES) or own


def _import_problem(module: str, error: BaseException) -> str:
    if not isinstance(error, ModuleNotFoundError) or not f"{module}.".startswith(f"{error.name}."):
        return describe_user_error(error)
    files = [path.stem for path in Path().glob("*.py")]
    if error.name in files:  # as by the installed command, unlike python -m maml_ray
        return (
            f"{error.name}.py is in the current directory, which is not on PYTHONPATH: write "
            "PYTHONPATH=. before the command"
        )
    return (
        f"there is no module {error.name} in the current directory or elsewhere on PYTHONPATH"
        + did_you_mean(str(error.name), files)
    )


def _is_family(value: Any) -> TypeGuard[type[TaskDistribution]]:
    return isinstance(value, type) and issubclass(value, TaskDistribution)


def _create(cls: type[TaskDistribution], name: str, options: Mapping[str, Any]) -> TaskDistribution:
    known = _option_names(cls)
    for key in options:
        if known is not None and key not in known:
            raise SettingsError(
                f"task.options.{key} is not an option of {name}{did_you_mean(key, known)} "
                f"(there are: {', '.join(known) or 'none'})"
            )

    def convert(error: BaseException) -> SettingsError:
        if isinstance(error, ValidationError):
            return SettingsError(describe_validation_error(error, prefix=("task", "options")))
        if isinstance(error, ValueError):
            return SettingsError(f"task.options are not allowed: {error}")
        return SettingsError(
            f"task.name = {name!r:.80} cannot be created with task.options = "
            f"{dict(options)!r:.80}: {describe_user_error(error)}"
        )

    with converted_errors(convert):
        return cls(**options)


def as_users_own(settings: Settings, own: OwnTasks | None = None) -> Settings:
    """Return settings that a run's record holds as the user's own, for other processes.

    Raises:
        SettingsError: as :func:`resolve_tasks`: this process may not import their module.
    """
    if settings.task.recorded_in is None:
        return settings
    resolve_tasks(settings.task, own)
    return settings.as_recorded_in(None)


def recorded_module(settings: TaskSettings) -> str | None:
    """Return the module that has to be allowed to use the tasks of a run's record; None if none."""
    if settings.env is not None:
        return settings.env.rpartition(":")[0] or None
    if settings.name in TASK_FAMILIES or settings.name.startswith(_GIVEN_IN_PYTHON):
        return None
    return settings.name.partition(":")[0]


def import_modules(names: Sequence[str], run: str | PathLike[str] | None = None) -> None:
    """Import modules that the user names, so that the record of a run may name them, too.

    Args:
        names: of the modules.
        run: directory of the run: modules in it are refused, before any of their code runs.

    Raises:
        SettingsError: a module cannot be imported, or lies in the run's directory.
    """
    run = None if run is None else parse_location(run, "RUN")
    for name in names:
        if isinstance(run, Path):
            _check_outside(f"--import {name:.80}", list(_locations(name)), str(run))
        _import_named(name)


def _import_named(name: str) -> None:
    with converted_errors(
        lambda error: SettingsError(
            f"--import {name:.80} cannot be imported: {describe_user_error(error)}"
        )
    ):
        importlib.import_module(name)


_MAKE_BY_KEYWORD = ("GymV21Environment-v0", "GymV26Environment-v0")
"""Environments that make one of the old gym, whose name, a keyword, may have a module to import."""


def _check_env_allowed(env: str, recorded_in: str) -> None:
    """Refuse a Gymnasium environment of a record that may import a module."""
    module, _, name = env.rpartition(":")
    if module:
        _check_module_allowed(f"task.env = {env!r:.80}", module, recorded_in)
    if name in _MAKE_BY_KEYWORD:
        raise SettingsError(
            f"task.env = {env!r:.80} is not made from the record of a run: write settings of your "
            "own that name the environment"
        )


def _check_module_allowed(key: str, module: str, recorded_in: str) -> None:
    """Refuse to import what only a run's record names: somebody else may have written it.

    What the program has imported already is the user's choice.
    """
    if module not in sys.modules:
        raise SettingsError(
            f"{key} is from the record of a run, and a record's modules are not imported, since "
            f"they execute code: if you trust {module:.80}, add --import {module:.80}, or in "
            f"Python import {module:.80} first"
        )
    file = getattr(sys.modules[module], "__file__", None)
    _check_outside(key, [] if file is None else [file], recorded_in)


def _check_outside(key: str, locations: Sequence[str], run: str) -> None:
    """Refuse a module in a run's directory: it came with the run."""
    folder = Path(run).resolve()
    for location in locations if run else ():
        if Path(location).resolve().is_relative_to(folder):
            raise SettingsError(
                f"{key} is not allowed: {location} is in the directory of the run; move the module "
                "elsewhere if it is yours"
            )


def _locations(name: str) -> Iterator[str]:
    """Yield the files and folders of a module and of its parents, without executing any."""
    path: Sequence[str] | None = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return  # an editable install, a built-in module, or none
        path = list(spec.submodule_search_locations or ())
        yield from path
        if spec.origin is not None:
            yield spec.origin


def _option_names(cls: type[TaskDistribution]) -> list[str] | None:
    """Return the names of the constructor's keyword arguments; None if it takes any."""
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]
