"""Check that a run can start or resume, before Ray starts, and load what it resumes from."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from rich.console import Console

from maml_ray.common.errors import RunDirError, error_reason
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import RunSettings, Settings, SettingsError
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.loading import agent_from_checkpoint
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import has_checkpoints, load_newest_of
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, check_writable
from maml_ray.persistence.run_storage import (
    checkpoint_storages,
    fetch_metrics,
    is_run_dir,
    open_run_storage,
    read_settings,
)
from maml_ray.persistence.storage import Storage, open_storage
from maml_ray.tasks.loading import OwnTasks

MUTABLE_ON_RESUME = (
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.directory",
    "run.storage",
)
"""Settings that may change on resume, in addition to ``cluster``, ``faults`` and ``evaluation``."""


def check_no_existing_run(run_dir: RunDir, settings: Settings) -> None:
    """Reject a new run whose directory or storage already holds one.

    Raises:
        RunDirError: there is a run, or the storage cannot be read.
    """
    if os.path.lexists(run_dir.settings):
        raise RunDirError(
            f"{run_dir.path} already holds a run: resume it with --resume {run_dir.path}, "
            "or name another directory"
        )
    absolute = run_dir.path.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise RunDirError(
            f"cannot write to the run directory {run_dir.path}: {existing} is not a directory; "
            "name another with --run-dir or run.directory"
        )
    storage = open_run_storage(run_dir, settings.run)
    if not is_run_dir(storage, run_dir) and read_settings(storage) is not None:
        raise RunDirError(
            f"{storage} already holds a run: resume it with --resume {storage}, "
            "or name another directory"
        )
    if has_checkpoints(storage):
        raise RunDirError(
            f"{storage} holds checkpoints of another run, without its settings: move them away, "
            "or name another directory"
        )


def check_storage_writable(run: RunSettings) -> None:
    """Write and remove a marker file in the run's storage, if one is set.

    Raises:
        RunDirError: either fails.
    """
    if run.storage is None:
        return
    storage, marker = open_storage(run.storage), f".start-{secrets.token_hex(4)}"
    try:
        storage.write(marker, b"")
        storage.remove(marker)
    except OSError as error:
        raise RunDirError(
            f"cannot write to run.storage = {run.storage} ({error_reason(error)}): fix it, or "
            "set run.storage to a writable location"
        ) from None


def load_resume_state(
    run_dir: RunDir, settings: Settings, console: Console, own_tasks: OwnTasks | None = None
) -> Checkpoint | None:
    """Load the checkpoint to resume from and fetch the metrics up to it.

    Returns:
        The newest checkpoint; None if the run ended before its first one.

    Raises:
        SettingsError: the settings differ from the run's.
        RunDirError: the directory or storage cannot be used, or belongs to another run.
    """
    _check_resumable(load_settings(run_dir.settings, recorded=True), settings)
    check_writable(run_dir.checkpoints, run_dir.tensorboard, run_dir.plots, run_dir.attempts)
    check_writable(run_dir.metrics, run_dir.evaluation, run_dir.episodes, run_dir.report)
    if os.path.lexists(run_dir.metrics):
        read_metrics(run_dir.metrics)  # report damaged metrics before Ray starts
    storages = checkpoint_storages(run_dir, settings.run)
    _check_same_run(run_dir, storages[0], settings)
    storage, checkpoint, warnings = load_newest_of(storages)
    for warning in warnings:
        print_notice(console, f"warning: {warning}")
    if checkpoint is None:
        _check_mounted(run_dir, storages[-1])
        print_notice(console, f"{storage} has no checkpoint yet: the run starts from the beginning")
        return None
    agent = agent_from_checkpoint(settings, checkpoint, run_dir.checkpoints)
    check_matches_task(replace(agent, own_tasks=own_tasks), run_dir.path)
    for storage in storages:
        fetch_metrics(storage, run_dir, checkpoint.iteration)
    return checkpoint


def _check_same_run(run_dir: RunDir, storage: Storage, settings: Settings) -> None:
    """Reject a storage that holds another run."""
    stored = None if is_run_dir(storage, run_dir) else read_settings(storage)
    if stored is None:
        return
    try:
        _check_resumable(stored, settings)
    except SettingsError as error:
        raise RunDirError(
            f"{storage} holds another run than {run_dir.path} ({error}): name another run.storage"
        ) from None


def _check_mounted(run_dir: RunDir, storage: Storage) -> None:
    """Reject an empty storage of a run that has finished iterations: it may not be mounted."""
    if is_run_dir(storage, run_dir) or not os.path.lexists(run_dir.metrics):
        return
    if read_settings(storage) is None and read_metrics(run_dir.metrics):
        raise RunDirError(
            f"{storage} is empty, but the run in {run_dir.path} has finished iterations: check "
            "that the storage is mounted, or start a new run in another directory"
        )


def _check_resumable(recorded: Settings, requested: Settings) -> None:
    """Reject a change of settings that would change what the run computes."""
    for section in type(recorded).model_fields:
        if section in ("cluster", "faults", "evaluation"):
            continue
        before, after = getattr(recorded, section), getattr(requested, section)
        for key in type(before).model_fields:
            name, old, new = f"{section}.{key}", getattr(before, key), getattr(after, key)
            if old != new and name not in MUTABLE_ON_RESUME:
                raise SettingsError(
                    f"{name} = {new!r}, but the run to resume has {old!r}: a resumed run keeps "
                    "its settings; start a new run to change them"
                )


def print_notice(console: Console, line: str) -> None:
    """Print a line that the user should notice."""
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
