"""Whether a run can begin or go on, and where: found out before anything starts."""

from __future__ import annotations

import os
import secrets

from rich.console import Console

from maml_ray.common.errors import RunDirError, told
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings, SettingsError
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

FREE_ON_RESUME = (
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.directory",
    "run.storage",
)
"""What a resumed run may change, beside all of ``cluster``, ``faults`` and ``evaluation``."""


def check_no_existing_run(folder: RunDir, settings: Settings) -> None:
    """Refuse to begin a run where there is one: in its folder, or in its storage.

    Raises:
        RunDirError: there is one, or the storage cannot be read.
    """
    if os.path.lexists(folder.settings):
        raise RunDirError(
            f"{folder.path} already holds a run: go on with it by --resume {folder.path}, "
            "or name another folder"
        )
    storage = open_run_storage(folder, settings)
    if not is_run_dir(storage, folder) and read_settings(storage) is not None:
        raise RunDirError(
            f"{storage} already holds a run: go on with it by --resume {storage}, "
            "or name another folder"
        )
    if has_checkpoints(storage):
        raise RunDirError(
            f"{storage} holds checkpoints of another run, without its settings: move them away, "
            "or name another folder"
        )


def check_storage_writable(settings: Settings) -> None:
    """Refuse to begin, or to go on, with a storage that takes nothing: before Ray is started.

    Raises:
        RunDirError: a marker cannot be written there, or not be removed.
    """
    if settings.run.storage is None:
        return
    storage, marker = open_storage(settings.run.storage), f".start-{secrets.token_hex(4)}"
    try:
        storage.write(marker, b"")
        storage.remove(marker)
    except OSError as error:
        raise RunDirError(
            f"cannot write to run.storage = {settings.run.storage} ({told(error)}): mend it, or "
            "set run.storage to a place that can be written"
        ) from None


def load_resume_state(folder: RunDir, settings: Settings, console: Console) -> Checkpoint | None:
    """Where a run goes on; None where it was ended before its first checkpoint.

    Raises:
        SettingsError: the settings are not the run's.
        RunDirError: the folder or the storage cannot be used, or is another run's.
    """
    _check_resumable(load_settings(folder.settings), settings)
    check_writable(folder.checkpoints, folder.tensorboard, folder.plots, folder.attempts)
    check_writable(folder.metrics, folder.evaluation, folder.episodes, folder.report)
    if os.path.lexists(folder.metrics):
        read_metrics(folder.metrics)  # before Ray is started, not after
    places = checkpoint_storages(folder, settings)
    _check_same_run(folder, places[0], settings)
    place, checkpoint, warnings = load_newest_of(places)
    for warning in warnings:
        say(console, f"warning: {warning}")
    if checkpoint is None:
        _check_mounted(folder, places[-1])
        say(console, f"{place} has no checkpoint yet: the run begins anew")
        return None
    check_matches_task(agent_from_checkpoint(settings, checkpoint, folder.checkpoints), folder.path)
    for each in places:
        fetch_metrics(each, folder, checkpoint.iteration)
    return checkpoint


def _check_same_run(folder: RunDir, storage: Storage, settings: Settings) -> None:
    """Refuse to go on in a storage that holds another run."""
    there = None if is_run_dir(storage, folder) else read_settings(storage)
    if there is None:
        return
    try:
        _check_resumable(there, settings)
    except SettingsError as error:
        raise RunDirError(
            f"{storage} holds another run than {folder.path} ({error}): name another run.storage"
        ) from None


def _check_mounted(folder: RunDir, storage: Storage) -> None:
    """Refuse to begin anew because a storage shows nothing of a run that was written to it."""
    if is_run_dir(storage, folder) or not os.path.lexists(folder.metrics):
        return
    if read_settings(storage) is None and read_metrics(folder.metrics):
        raise RunDirError(
            f"{storage} shows nothing of the run in {folder.path}, which has finished iterations: "
            "see that it is mounted, or name another run folder to begin anew"
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


def say(console: Console, line: str) -> None:
    """A line that a person should see."""
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
