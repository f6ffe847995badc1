"""Train, evaluate and report a run: ``maml_ray.train`` and ``maml-ray train``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from maml_ray.common.errors import Interrupted, RunDirError, TrainingFailed
from maml_ray.common.locations import (
    escape_path,
    expand_path,
    is_url,
    parse_location,
    parse_path,
)
from maml_ray.config.loading import load_settings
from maml_ray.config.sections import RunSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.envs.opengl import import_mujoco
from maml_ray.maml.losses import outer_objective
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.file_lock import lock_run_dir
from maml_ray.persistence.records import Observer
from maml_ray.persistence.run_dir import RunDir, open_run_dir, resolve_base_directory
from maml_ray.persistence.run_storage import (
    check_locations,
    fetch_run,
    is_run_dir,
    open_run_storage,
    read_settings,
    storage_location,
    unused_run_dir,
)
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.reporting.progress import make_progress, show_any_text
from maml_ray.runs.evaluate import EvaluationConfig, RunResult, evaluate_run, read_result
from maml_ray.runs.observers import GuardedObserver, ObserverList, check_observers
from maml_ray.runs.precompile import compile_ahead
from maml_ray.runs.resume import (
    check_no_existing_run,
    check_storage_writable,
    keep_annealing,
    load_resume_state,
    print_notice,
)
from maml_ray.runs.session import open_session
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.connection.connect import is_local
from maml_ray.tasks.loading import OwnTasks, record_own_tasks, recorded_module, resolve_tasks

AUTO = "auto"
"""``resume`` value: continue the run that the settings name, or start it if it does not exist."""


def train(
    settings: Settings | str | Path | None = None,
    *,
    tasks: OwnTasks | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    observers: Sequence[Observer] = (),
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    console: Console | None = None,
) -> RunResult:
    """Meta-train, evaluate and report; all files are written to one run directory.

    Args:
        settings: settings of the run, the name of a preset, or the path of a YAML file; None for
            the defaults, or for the settings of the resumed run.
        tasks: tasks to train on in place of those that the settings name: a subclass of
            :class:`TaskDistribution`, which is created without arguments, or an instance of one.
            It may be defined in a notebook or script. The run records only its name, so resuming
            or loading the run needs it again.
        iterations: replaces ``run.iterations``.
        seed: replaces ``run.seed``.
        observers: receive the progress of the run, beside its display and its logs.
        run_dir: run directory; a new one in ``run.directory`` by default.
        resume: run to continue: its directory, its URL in storage, or ``"auto"`` for the run
            ``run.name`` in ``run.storage`` or ``run.directory``, started if it does not exist.
        console: shows the progress; the terminal by default.

    Raises:
        SettingsError: a setting is invalid or differs from that of the resumed run, the settings
            name no task, or an observer is none.
        RunDirError: the directory or storage cannot be used, or belongs to another run.
        ResourceError: the cluster does not exist or lacks the requested resources.
        TrainingFailed: a work item could not be done.
        Superseded: a newer attempt at the run has started elsewhere.
        Interrupted: SIGINT or SIGTERM; finished iterations are checkpointed.
    """
    if console is None:
        show_any_text()
        console = Console()
    check_observers(observers)
    if resume is not None and run_dir is not None:
        raise RunDirError("resume names the run directory already: leave run_dir out")
    changes = {"run.iterations": iterations, "run.seed": seed}
    changes = {key: value for key, value in changes.items() if value is not None}
    target, settings = _resolve_run(_load(settings), changes, tasks, run_dir, resume, console)
    with lock_run_dir(target.path):  # before reading what the directory holds
        if resume is None or not os.path.lexists(target.settings):
            check_no_existing_run(target, settings)
            check_storage_writable(settings.run)
            return _train_and_evaluate(
                target, settings, tasks, None, console, observers, new=resume is None
            )
        settings = keep_annealing(target, settings, console)
        checkpoint = load_resume_state(target, settings, console, tasks)
        if checkpoint is not None and checkpoint.iteration >= settings.run.iterations:
            return _finish(target, settings, tasks, checkpoint, console, reevaluate=resume != AUTO)
        check_storage_writable(settings.run)
        return _train_and_evaluate(target, settings, tasks, checkpoint, console, observers)


def open_or_fetch_run(run: str | Path) -> RunDir:
    """Open the run directory at a path, or fetch a run from a URL to a directory in ``runs/``.

    Raises:
        RunDirError: there is no run.
        StorageError: the URL is not one of a storage.
    """
    location = parse_location(run, "resume")
    if isinstance(location, str):
        return fetch_run(location, _base_directory(RunSettings()))
    return open_run_dir(location)


def _train_and_evaluate(
    run_dir: RunDir,
    settings: Settings,
    own_tasks: OwnTasks | None,
    checkpoint: Checkpoint | None,
    console: Console,
    own_observers: Sequence[Observer],
    *,
    new: bool = False,
) -> RunResult:
    log = MetricsLog(run_dir, checkpoint.iteration if checkpoint else 0)
    with closing(make_progress(console)) as progress:
        reporters = ObserverList([log, progress])
        guarded = [GuardedObserver(observer, reporters.on_event) for observer in own_observers]
        observers = [log, progress, *guarded]
        try:
            if is_local(settings.cluster.address):
                compile_ahead(progress.on_status, progress.on_event)
            train_on_ray(
                settings,
                run_dir,
                own_tasks=own_tasks,
                observers=observers,
                resume=checkpoint,
                new=new,
            )
        except (Interrupted, TrainingFailed) as error:
            if run_dir.settings.exists():
                # What could not be saved there is in another directory.
                error.run = error.run or str(run_dir.path)
                error.module = recorded_module(settings.task)
            raise
        finally:
            for observer in [*guarded, log]:
                observer.close()
        return _evaluate(run_dir, settings, own_tasks, progress)


def _finish(
    run_dir: RunDir,
    settings: Settings,
    own_tasks: OwnTasks | None,
    checkpoint: Checkpoint,
    console: Console,
    *,
    reevaluate: bool,
) -> RunResult:
    """Store changed settings and evaluate a run that has all its iterations, without Ray."""
    print_notice(console, f"{run_dir.path} is done: it has {checkpoint.iteration} iterations")
    if load_settings(run_dir.settings, recorded=True) != settings:
        open_session(run_dir, settings, checkpoint)
    earlier = None if reevaluate else _earlier_result(run_dir, own_tasks)
    if earlier is not None:
        return earlier
    with closing(make_progress(console)) as progress:
        return _evaluate(run_dir, settings, own_tasks, progress)


def _evaluate(
    run_dir: RunDir, settings: Settings, own_tasks: OwnTasks | None, progress: Observer
) -> RunResult:
    config = EvaluationConfig(video=settings.evaluation.video, own_tasks=own_tasks)
    return evaluate_run(run_dir, config, on_status=progress.on_status)


def _earlier_result(run_dir: RunDir, own_tasks: OwnTasks | None) -> RunResult | None:
    """Return the result of an evaluation newer than the metrics, with its report, if there is."""
    try:
        result = read_result(run_dir, own_tasks)
        written = run_dir.evaluation.stat().st_mtime
        is_newer = run_dir.report.exists() and written >= run_dir.metrics.stat().st_mtime
        return result if is_newer else None
    except (OSError, RunDirError):
        return None


def _load(settings: Settings | str | Path | None) -> Settings | None:
    """Load settings by the path of a YAML file or the name of a preset.

    Raises:
        SettingsError: there is no such preset, or the file cannot be read.
    """
    if settings is None or isinstance(settings, Settings):
        return settings
    if not isinstance(settings, str | Path):
        raise SettingsError(
            f"settings = {settings!r:.80} is not allowed: pass Settings, the name of a preset or "
            "the path of a YAML file"
        )
    if Path(settings).suffix in (".yaml", ".yml"):
        return load_settings(settings)
    return load_settings(preset=str(settings))


def _resolve_run(
    settings: Settings | None,
    changes: Mapping[str, Any],
    own_tasks: OwnTasks | None,
    run_dir: str | Path | None,
    resume: str | Path | None,
    console: Console,
) -> tuple[RunDir, Settings]:
    """Return the run directory, which may not exist yet, and the settings with ``changes``."""
    if resume is not None and resume != AUTO:
        target = open_or_fetch_run(resume)
        settings = settings or load_settings(target.settings, recorded=True)
        settings = _complete(settings, changes, own_tasks)
    else:
        settings = _complete(settings or Settings(), changes, own_tasks)
        if resume == AUTO:
            target = _named_run_dir(settings, console)
        else:
            named = None if run_dir is None else RunDir(parse_path(run_dir, "run_dir"))
            target = named or _new_run_dir(settings.run)
            check_no_existing_run(target, settings)
        if run_dir is None:
            _notify_of_moved_directory(settings.run, console)
    # Report an unknown task, objective or storage before Ray starts.
    try:
        resolve_tasks(settings.task, own_tasks)
        _warn_of_opengl(settings, console)
        outer_objective(settings.outer.objective)
    except SettingsError as error:
        if resume not in (None, AUTO) and _are_recorded(settings, target):
            raise SettingsError(f"{target.settings}: {error}") from None
        raise
    check_locations(settings, target)
    # This process may import their module: so may the actors.
    return target, settings.as_recorded_in(None)


def _warn_of_opengl(settings: Settings, console: Console) -> None:
    """Print that there will be no video of MuJoCo if its OpenGL cannot be loaded."""
    problem = import_mujoco()
    if problem is not None and settings.evaluation.video:
        print_notice(console, f"warning: {problem}; MuJoCo renders no video")


def _complete(
    settings: Settings, changes: Mapping[str, Any], own_tasks: OwnTasks | None
) -> Settings:
    """Return the settings to record, with what the arguments of :func:`train` change."""
    return record_own_tasks(_with_absolute_storage(settings.replace(changes)), own_tasks)


def _are_recorded(settings: Settings, target: RunDir) -> bool:
    return settings == _with_absolute_storage(load_settings(target.settings, recorded=True))


def _named_run_dir(settings: Settings, console: Console) -> RunDir:
    """Return the directory of the run ``run.name``, fetched if the run is only in storage."""
    run_dir = RunDir(_base_directory(settings.run) / settings.run.name)
    if os.path.lexists(run_dir.settings):
        return open_run_dir(run_dir.path)
    storage = open_run_storage(run_dir, settings.run)
    if is_run_dir(storage, run_dir) or read_settings(storage) is None:
        return run_dir
    print_notice(console, f"resuming the run in {storage}")
    return fetch_run(str(storage), run_dir.path.parent)


def _new_run_dir(run: RunSettings) -> RunDir:
    """Return an unused directory named after the run and the time."""
    return unused_run_dir(_base_directory(run), f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")


def _base_directory(run: RunSettings) -> Path:
    directory = expand_path(run.directory, "run.directory")
    return resolve_base_directory(directory, os.environ, Path.home())


def _notify_of_moved_directory(run: RunSettings, console: Console) -> None:
    """Print where run directories are created if it is not where the settings say."""
    directory = _base_directory(run)
    if directory != expand_path(run.directory, "run.directory"):
        print_notice(
            console,
            f"using run.directory = {directory}: the working directory of a job is a copy that "
            "Ray removes",
        )


def _with_absolute_storage(settings: Settings) -> Settings:
    """Make a relative ``run.storage`` absolute: later commands may run in another directory."""
    storage = storage_location(settings.run)
    if storage is None or is_url(storage):
        return settings
    path = resolve_base_directory(Path(storage), os.environ, Path.home()).absolute()
    run = settings.run.model_copy(update={"storage": escape_path(path)})
    return settings.model_copy(update={"run": run})
