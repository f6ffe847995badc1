"""A run from settings to report: train, evaluate, write down. What the command line calls."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path

from rich.console import Console

from maml_ray.checkpoint import has_checkpoints, load_newest
from maml_ray.checkpoint_files import Checkpoint
from maml_ray.config import Settings, SettingsError, load_settings
from maml_ray.errors import Interrupted, RunFolderError, TrainingFailed
from maml_ray.evaluation_run import Protocol, RunResult, evaluate_run
from maml_ray.fitting import check_fits_task
from maml_ray.loading import load
from maml_ray.records import Observer
from maml_ray.report.metrics import MetricsLog, read_metrics
from maml_ray.report.progress import make_progress
from maml_ray.run_folder import RunFolder, check_writable, open_run
from maml_ray.run_lock import run_lock
from maml_ray.run_storage import fetch_run, run_storage
from maml_ray.tasks.lookup import resolve_tasks
from maml_ray.training import train as train_on_ray

FREE_ON_RESUME = (
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.directory",
    "run.storage",
)
"""What a resumed run may change, beside all of ``cluster``, ``faults`` and ``evaluation``."""


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
        resume: a run folder to go on with.
        console: where progress is shown; the terminal by default.

    Raises:
        SettingsError: the settings do not fit the run that is to be resumed, or name no task.
        RunFolderError: the folder cannot be used, or a living run uses it.
        ResourceError: the cluster is not there or lacks what is asked for.
        TrainingFailed: a piece of work could not be done.
        Interrupted: Ctrl-C or SIGTERM; finished iterations are checkpointed.
    """
    console = console or Console()
    folder, settings = _chosen(settings, run_dir, resume)
    with run_lock(folder.path):  # and only then look at what the folder holds
        checkpoint = _begun(folder, settings, console) if resume is not None else None
        if resume is None:
            _check_free(folder)
        return _run(folder, settings, checkpoint, console)


def _run(
    folder: RunFolder, settings: Settings, checkpoint: Checkpoint | None, console: Console
) -> RunResult:
    first = checkpoint.iteration if checkpoint else 0
    observers: list[Observer] = [MetricsLog(folder, first), make_progress(console)]
    try:
        train_on_ray(settings, folder, observers=observers, resume=checkpoint)
    except (Interrupted, TrainingFailed) as error:
        if folder.settings.exists():
            error.run = str(folder.path)
        raise
    finally:
        for observer in observers:
            observer.close()
    return evaluate_run(folder, Protocol(video=settings.evaluation.video), console=console)


def _chosen(
    settings: Settings | None, run_dir: str | Path | None, resume: str | Path | None
) -> tuple[RunFolder, Settings]:
    """The run folder, which need not be there yet, and the settings."""
    if resume is not None:
        folder = find_run(resume)
        settings = settings or load_settings(folder.settings)
    else:
        settings = settings or Settings()
        folder = RunFolder(Path(run_dir)) if run_dir is not None else _new_folder(settings)
        _check_free(folder)
    resolve_tasks(settings.task)  # a name that is not there costs nothing yet
    run_storage(folder, settings)  # nor does a URL that is none
    return folder, settings


def find_run(run: str | Path) -> RunFolder:
    """The run folder of a path; of a URL, a copy of what is kept there, under ``runs/``.

    Raises:
        RunFolderError: there is no run.
        StorageError: there can be none at that URL.
    """
    if "://" in str(run):
        return fetch_run(str(run), Path(Settings().run.directory))
    return open_run(run)


def _begun(folder: RunFolder, settings: Settings, console: Console) -> Checkpoint | None:
    """Where a run goes on; None where it was ended before its first checkpoint."""
    _check_resumable(load_settings(folder.settings), settings)
    check_writable(folder.checkpoints, folder.tensorboard, folder.plots)
    check_writable(folder.metrics, folder.evaluation, folder.episodes, folder.report)
    if os.path.lexists(folder.metrics):
        read_metrics(folder.metrics)  # before Ray is started, not after
    storage = run_storage(folder, settings)
    if not has_checkpoints(storage):
        console.print(f"{storage} has no checkpoint yet: the run begins anew", style="yellow")
        return None
    check_fits_task(load(folder.path), folder.path)
    checkpoint, warnings = load_newest(storage)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    return checkpoint


def _new_folder(settings: Settings) -> RunFolder:
    """One named after the run and the time; numbered where another began in the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{settings.run.name}-{stamp}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    paths = (Path(settings.run.directory) / each for each in names)
    return RunFolder(next(path for path in paths if not os.path.lexists(path)))


def _check_free(folder: RunFolder) -> None:
    if os.path.lexists(folder.settings):
        raise RunFolderError(
            f"{folder.path} already holds a run: go on with it by --resume {folder.path}, "
            "or name another folder"
        )


def _check_resumable(recorded: Settings, asked: Settings) -> None:
    """Refuse to go on with other mathematics than the run began with."""
    for section in type(recorded).model_fields:
        if section in ("cluster", "faults", "evaluation"):
            continue
        before, after = getattr(recorded, section), getattr(asked, section)
        for key in type(before).model_fields:
            name, old, new = f"{section}.{key}", getattr(before, key), getattr(after, key)
            if old != new and name not in FREE_ON_RESUME:
                raise SettingsError(
                    f"{name} = {new!r}, but the run to resume has {old!r}: a resumed run keeps "
                    "its settings; start a new run to change them"
                )
