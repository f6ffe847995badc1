"""Train, evaluate and report a run: ``maml_ray.train`` and ``maml-ray train``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from maml_ray.common.errors import Interrupted, RunDirError, TrainingFailed
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import RunSettings, Settings, SettingsError
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.kernels.jit import has_cached_code
from maml_ray.maml.losses import outer_objective
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.file_lock import lock_run_dir
from maml_ray.persistence.records import Observer
from maml_ray.persistence.run_dir import RunDir, open_run_dir, resolve_base_directory
from maml_ray.persistence.run_storage import (
    fetch_run,
    is_run_dir,
    open_run_storage,
    read_settings,
    unused_run_dir,
)
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.reporting.progress import make_progress
from maml_ray.runs.evaluate import EvaluationConfig, RunResult, evaluate_run
from maml_ray.runs.resume import (
    check_no_existing_run,
    check_storage_writable,
    load_resume_state,
    print_notice,
)
from maml_ray.runs.session import open_session
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.tasks.loading import resolve_tasks

AUTO = "auto"
"""``resume`` value: continue the run that the settings name, or start it if it does not exist."""


def train(
    settings: Settings | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    console: Console | None = None,
) -> RunResult:
    """Meta-train, evaluate and report; all files are written to one run directory.

    Args:
        settings: settings of the run; None for the defaults, or for those of the resumed run.
        run_dir: run directory; a new one in ``run.directory`` by default.
        resume: run to continue: its directory, its URL in storage, or ``"auto"`` for the run
            ``run.name`` in ``run.storage`` or ``run.directory``, started if it does not exist.
        console: shows the progress; the terminal by default.

    Raises:
        SettingsError: the settings differ from those of the resumed run, or name no task.
        RunDirError: the directory or storage cannot be used, or belongs to another run.
        ResourceError: the cluster does not exist or lacks the requested resources.
        TrainingFailed: a work item could not be done.
        Superseded: a newer attempt at the run has started elsewhere.
        Interrupted: SIGINT or SIGTERM; finished iterations are checkpointed.
    """
    console = console or Console()
    target, settings = _resolve_run(settings, run_dir, resume, console)
    with lock_run_dir(target.path):  # before reading what the directory holds
        if resume is None or not os.path.lexists(target.settings):
            check_no_existing_run(target, settings)
            check_storage_writable(settings.run)
            return _train_and_evaluate(target, settings, None, console, new=resume is None)
        checkpoint = load_resume_state(target, settings, console)
        if checkpoint is not None and checkpoint.iteration >= settings.run.iterations:
            return _finish(target, settings, checkpoint, console, reevaluate=resume != AUTO)
        check_storage_writable(settings.run)
        return _train_and_evaluate(target, settings, checkpoint, console)


def open_or_fetch_run(run: str | Path) -> RunDir:
    """Open the run directory at a path, or fetch a run from a URL to a directory in ``runs/``.

    Raises:
        RunDirError: there is no run.
        StorageError: the URL is not one of a storage.
    """
    if "://" in str(run):
        return fetch_run(str(run), _base_directory(RunSettings()))
    return open_run_dir(run)


def _train_and_evaluate(
    run_dir: RunDir,
    settings: Settings,
    checkpoint: Checkpoint | None,
    console: Console,
    *,
    new: bool = False,
) -> RunResult:
    first = checkpoint.iteration if checkpoint else 0
    observers: list[Observer] = [MetricsLog(run_dir, first), make_progress(console)]
    if settings.cluster.address is None and not has_cached_code():
        print_notice(console, "compiling kernels (once per machine, about 30 s)")
    try:
        train_on_ray(settings, run_dir, observers=observers, resume=checkpoint, new=new)
    except (Interrupted, TrainingFailed) as error:
        if run_dir.settings.exists():
            error.run = str(run_dir.path)
        raise
    finally:
        for observer in observers:
            observer.close()
    return evaluate_run(run_dir, EvaluationConfig(video=settings.evaluation.video), console=console)


def _finish(
    run_dir: RunDir,
    settings: Settings,
    checkpoint: Checkpoint,
    console: Console,
    *,
    reevaluate: bool,
) -> RunResult:
    """Store changed settings and evaluate a run that has all its iterations, without Ray."""
    print_notice(console, f"{run_dir.path} is done: it has {checkpoint.iteration} iterations")
    if load_settings(run_dir.settings, recorded=True) != settings:
        open_session(run_dir, settings, checkpoint)
    if not reevaluate and _is_evaluated(run_dir):
        return RunResult(run_dir, None, read_evaluation(run_dir.evaluation), ())
    return evaluate_run(run_dir, EvaluationConfig(video=settings.evaluation.video), console=console)


def _is_evaluated(run_dir: RunDir) -> bool:
    """Return whether an evaluation newer than the metrics, and its report, exist."""
    try:
        read_evaluation(run_dir.evaluation)
        written = run_dir.evaluation.stat().st_mtime
        return run_dir.report.exists() and written >= run_dir.metrics.stat().st_mtime
    except (OSError, RunDirError):
        return False


def _resolve_run(
    settings: Settings | None,
    run_dir: str | Path | None,
    resume: str | Path | None,
    console: Console,
) -> tuple[RunDir, Settings]:
    """Return the run directory, which may not exist yet, and the settings."""
    if resume is not None and resume != AUTO:
        target = open_or_fetch_run(resume)
        settings = _with_absolute_storage(settings or load_settings(target.settings, recorded=True))
    else:
        settings = _with_absolute_storage(settings or Settings())
        if resume == AUTO:
            target = _named_run_dir(settings, console)
        else:
            target = RunDir(Path(run_dir)) if run_dir is not None else _new_run_dir(settings.run)
            check_no_existing_run(target, settings)
        if run_dir is None:
            _notify_of_moved_directory(settings.run, console)
    # Report an unknown task, objective or storage before Ray starts.
    try:
        resolve_tasks(settings.task)
        outer_objective(settings.outer.objective)
    except SettingsError as error:
        if resume not in (None, AUTO) and _are_recorded(settings, target):
            raise SettingsError(f"{target.settings}: {error}") from None
        raise
    open_run_storage(target, settings.run)
    return target, settings


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
    return resolve_base_directory(run.directory, os.environ, Path.home())


def _notify_of_moved_directory(run: RunSettings, console: Console) -> None:
    """Print where run directories are created if it is not where the settings say."""
    directory = _base_directory(run)
    if directory != Path(run.directory):
        print_notice(
            console,
            f"using run.directory = {directory}: the working directory of a job is a copy that "
            "Ray removes",
        )


def _with_absolute_storage(settings: Settings) -> Settings:
    """Make a relative ``run.storage`` absolute: later commands may run in another directory."""
    storage = settings.run.storage
    if storage is None or "://" in storage:
        return settings
    path = resolve_base_directory(storage, os.environ, Path.home()).absolute()
    run = settings.run.model_copy(update={"storage": str(path)})
    return settings.model_copy(update={"run": run})
