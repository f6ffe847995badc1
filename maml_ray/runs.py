"""A run from settings to report: train, evaluate, write down. What the command line calls."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from maml_ray.checkpoint import check_fits, has_checkpoints, load_newest
from maml_ray.checkpoint_files import Checkpoint
from maml_ray.config import Settings, SettingsError, load_settings
from maml_ray.errors import Interrupted, RunFolderError, TrainingFailed
from maml_ray.evaluation_run import Protocol, RunResult, evaluate_run
from maml_ray.records import Observer
from maml_ray.report.metrics import MetricsLog
from maml_ray.report.progress import make_progress
from maml_ray.rollout import policy_spec
from maml_ray.run_folder import RunFolder, open_run
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
        RunFolderError: the folder cannot be used.
        ResourceError: the cluster is not there or lacks what is asked for.
        TrainingFailed: a piece of work could not be done.
        Interrupted: Ctrl-C or SIGTERM; finished iterations are checkpointed.
    """
    console = console or Console()
    folder, settings, checkpoint = _prepare(settings, run_dir, resume, console)
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


def _prepare(
    settings: Settings | None,
    run_dir: str | Path | None,
    resume: str | Path | None,
    console: Console,
) -> tuple[RunFolder, Settings, Checkpoint | None]:
    """The run folder, made or found; the settings; and where to go on."""
    if resume is not None:
        folder = find_run(resume)
        recorded = load_settings(folder.settings)
        settings = settings or recorded
        _check_resumable(recorded, settings)
        checkpoint = _newest(folder, settings, console)
    else:
        settings, checkpoint = settings or Settings(), None
        folder = _new_folder(settings, run_dir)
    resolve_tasks(settings.task)  # a name that is not there costs nothing yet
    return folder, settings, checkpoint


def find_run(run: str | Path) -> RunFolder:
    """The run folder of a path; of a URL, a copy of what is kept there, under ``runs/``.

    Raises:
        RunFolderError: there is no run.
        StorageError: there can be none at that URL.
    """
    if "://" in str(run):
        return fetch_run(str(run), Path(Settings().run.directory))
    return open_run(run)


def _newest(folder: RunFolder, settings: Settings, console: Console) -> Checkpoint | None:
    """Where the run in ``folder`` goes on; None where it was ended before its first checkpoint."""
    storage = run_storage(folder, settings)
    if not has_checkpoints(storage):
        console.print(f"{storage} has no checkpoint yet: the run begins anew", style="yellow")
        return None
    checkpoint, warnings = load_newest(storage)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    check_fits(checkpoint, policy_spec(settings))
    return checkpoint


def _new_folder(settings: Settings, run_dir: str | Path | None) -> RunFolder:
    if run_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return RunFolder(Path(settings.run.directory) / f"{settings.run.name}-{stamp}")
    folder = RunFolder(Path(run_dir))
    if folder.settings.exists():
        raise RunFolderError(
            f"{run_dir} already holds a run: go on with it by --resume {run_dir}, "
            "or name another folder"
        )
    return folder


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
