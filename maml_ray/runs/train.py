"""A run from settings to report: train, evaluate, write down. What the command line calls."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path

from rich.console import Console

from maml_ray.common.errors import Interrupted, RunDirError, TrainingFailed
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.file_lock import lock_run_dir
from maml_ray.persistence.records import Observer
from maml_ray.persistence.run_dir import RunDir, open_run_dir, resolve_base_directory
from maml_ray.persistence.run_storage import (
    fetch_run,
    is_run_dir,
    open_run_storage,
    read_settings,
)
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.reporting.progress import make_progress
from maml_ray.runs.evaluate import EvaluationConfig, RunResult, evaluate_run
from maml_ray.runs.resume import (
    check_no_existing_run,
    check_storage_writable,
    load_resume_state,
    say,
)
from maml_ray.runs.session import open_session
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.tasks.registry import resolve_tasks

AUTO = "auto"
"""In the place of a run to go on with: the one that the settings name, begun if need be."""


def train(
    settings: Settings | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    console: Console | None = None,
) -> RunResult:
    """Meta-train, evaluate and report; everything lands in one run folder.

    Args:
        settings: of the run; all defaults if None, or the resumed run's own.
        run_dir: the run folder; a new one under ``run.directory`` by default.
        resume: a run to go on with: its folder, its URL in storage, or ``"auto"``: the run of
            ``run.name`` in ``run.storage`` or ``run.directory``, begun if it is not there yet.
        console: where progress is shown; the terminal by default.

    Raises:
        SettingsError: the settings do not fit the run that is to be resumed, or name no task.
        RunDirError: the folder or the storage cannot be used, or is another run's.
        ResourceError: the cluster is not there or lacks what is asked for.
        TrainingFailed: a piece of work could not be done.
        Superseded: a newer attempt at the run has begun elsewhere.
        Interrupted: Ctrl-C or SIGTERM; finished iterations are checkpointed.
    """
    console = console or Console()
    folder, settings = _chosen(settings, run_dir, resume, console)
    with lock_run_dir(folder.path):  # and only then look at what the folder holds
        if resume is None or not os.path.lexists(folder.settings):
            check_no_existing_run(folder, settings)
            check_storage_writable(settings)
            return _run(folder, settings, None, console, new=resume is None)
        checkpoint = load_resume_state(folder, settings, console)
        if checkpoint is not None and checkpoint.iteration >= settings.run.iterations:
            return _done(folder, settings, checkpoint, console, again=resume != AUTO)
        check_storage_writable(settings)
        return _run(folder, settings, checkpoint, console)


def _run(
    folder: RunDir,
    settings: Settings,
    checkpoint: Checkpoint | None,
    console: Console,
    *,
    new: bool = False,
) -> RunResult:
    first = checkpoint.iteration if checkpoint else 0
    observers: list[Observer] = [MetricsLog(folder, first), make_progress(console)]
    try:
        train_on_ray(settings, folder, observers=observers, resume=checkpoint, new=new)
    except (Interrupted, TrainingFailed) as error:
        if folder.settings.exists():
            error.run = str(folder.path)
        raise
    finally:
        for observer in observers:
            observer.close()
    return evaluate_run(folder, EvaluationConfig(video=settings.evaluation.video), console=console)


def _done(
    folder: RunDir, settings: Settings, checkpoint: Checkpoint, console: Console, *, again: bool
) -> RunResult:
    """What is left to do of a run that has all its iterations: no Ray is needed for it."""
    say(console, f"{folder.path} is done: it has {checkpoint.iteration} iterations")
    if load_settings(folder.settings) != settings:
        open_session(folder, settings, checkpoint)
    if not again and _is_evaluated(folder):
        return RunResult(folder, None, read_evaluation(folder.evaluation), ())
    return evaluate_run(folder, EvaluationConfig(video=settings.evaluation.video), console=console)


def _is_evaluated(folder: RunDir) -> bool:
    """Whether there is an evaluation, of these iterations, and the report that comes after it."""
    try:
        read_evaluation(folder.evaluation)
        written = folder.evaluation.stat().st_mtime
        return folder.report.exists() and written >= folder.metrics.stat().st_mtime
    except (OSError, RunDirError):
        return False


def _chosen(
    settings: Settings | None,
    run_dir: str | Path | None,
    resume: str | Path | None,
    console: Console,
) -> tuple[RunDir, Settings]:
    """The run folder, which need not be there yet, and the settings."""
    if resume is not None and resume != AUTO:
        folder = open_or_fetch_run(resume)
        settings = _placed(settings or load_settings(folder.settings))
    else:
        settings = _placed(settings or Settings())
        if resume == AUTO:
            folder = _named(settings, console)
        else:
            folder = RunDir(Path(run_dir)) if run_dir is not None else _new_folder(settings)
            check_no_existing_run(folder, settings)
        if run_dir is None:
            _tell_directory(settings, console)
    resolve_tasks(settings.task)  # a name that is not there costs nothing yet
    open_run_storage(folder, settings)  # nor does a URL that is none
    return folder, settings


def open_or_fetch_run(run: str | Path) -> RunDir:
    """The run folder of a path; of a URL, a copy of what is kept there, under ``runs/``.

    Raises:
        RunDirError: there is no run.
        StorageError: there can be none at that URL.
    """
    if "://" in str(run):
        return fetch_run(str(run), _directory(Settings()))
    return open_run_dir(run)


def _named(settings: Settings, console: Console) -> RunDir:
    """The run folder of ``run.name``, without a time stamp: fetched, if it is only in storage."""
    folder = RunDir(_directory(settings) / settings.run.name)
    if not os.path.lexists(folder.settings):
        storage = open_run_storage(folder, settings)
        if not is_run_dir(storage, folder) and read_settings(storage) is not None:
            say(console, f"going on with the run that is kept in {storage}")
            return fetch_run(str(storage), folder.path.parent)
        return folder
    return open_run_dir(folder.path)


def _directory(settings: Settings) -> Path:
    return resolve_base_directory(settings.run.directory, os.environ, Path.home())


def _tell_directory(settings: Settings, console: Console) -> None:
    """Say so, where run folders are not made where the settings say."""
    directory = _directory(settings)
    if directory != Path(settings.run.directory):
        say(
            console,
            f"run.directory is {directory} here: the working directory of a job is a copy that "
            "Ray removes",
        )


def _placed(settings: Settings) -> Settings:
    """Settings whose storage does not depend on where the next command is typed."""
    storage = settings.run.storage
    if storage is None or "://" in storage:
        return settings
    path = resolve_base_directory(storage, os.environ, Path.home()).absolute()
    return settings.model_copy(
        update={"run": settings.run.model_copy(update={"storage": str(path)})}
    )


def _new_folder(settings: Settings) -> RunDir:
    """One named after the run and the time; numbered where another began in the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{settings.run.name}-{stamp}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    paths = (_directory(settings) / each for each in names)
    return RunDir(next(path for path in paths if not os.path.lexists(path)))
