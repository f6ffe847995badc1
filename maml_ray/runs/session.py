"""Keeping what a run has learned safe, while it learns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from maml_ray.common.errors import RunDirError, Superseded, told
from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.staleness import checkpoints_to_keep
from maml_ray.persistence.async_writer import AsyncCheckpointWriter
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_named_checkpoint,
    read_best_score,
    save_checkpoint,
)
from maml_ray.persistence.lease import FencedStorage, acquire_lease
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.run_storage import (
    MetricsMirror,
    checkpoint_storages,
    is_run_dir,
    open_run_storage,
    save_fallback,
    unused_run_dir,
    write_settings,
)
from maml_ray.persistence.storage import LocalStorage, Storage


def open_session(
    folder: RunDir, settings: Settings, resume: Checkpoint | None = None, *, new: bool = False
) -> FencedStorage:
    """Make the run folder, with the settings in it, and begin an attempt at the run.

    From here on no older attempt writes to the run's storage. A run that changes its storage has
    in the new one what it goes on from before its settings say so.

    Args:
        folder: of the run.
        settings: of the run.
        resume: where it goes on.
        new: nobody else may have begun it.

    Raises:
        RunDirError: the folder or the storage cannot be written to, or the storage belongs to
            another run.
    """
    places = checkpoint_storages(folder, settings) if folder.settings.exists() else ()
    storage = open_run_storage(folder, settings)
    try:
        fenced = _begin(storage, places[1:], new and not is_run_dir(storage, folder))
        if not is_run_dir(storage, folder):
            _keep_settings(fenced, settings, new)
        if resume is not None:
            _bring_along(resume, places[1:], fenced, settings)
    except OSError as error:
        raise RunDirError(f"cannot write to {storage}: {told(error)}") from None
    try:
        content = dump_settings(settings).encode()
        LocalStorage(folder.path).write(folder.settings.name, content)
    except OSError as error:
        raise RunDirError(f"cannot write to the run folder {folder.path}: {told(error)}") from None
    return fenced


@contextmanager
def open_checkpoint_writer(
    settings: Settings,
    folder: RunDir,
    storage: FencedStorage,
    on_superseded: Callable[[Superseded], None] = lambda error: None,
) -> Iterator[AsyncCheckpointWriter]:
    """A writer of the run's checkpoints, for the time of the block."""
    chosen = settings.faults.fallback_directory

    @cache  # what is there already is another run's, or an earlier misfortune of this one
    def place() -> RunDir:
        # The temporary folder is everybody's: there, one that nobody else can have made.
        base = Path(chosen or tempfile.mkdtemp(prefix="maml_ray-fallback-"))
        return unused_run_dir(base, folder.path.resolve().name)

    def elsewhere(checkpoint: Checkpoint) -> str:
        rows = ""
        with suppress(OSError):  # the parameters are worth more than the curves
            rows = folder.metrics.read_text(encoding="utf-8")
        return save_fallback(settings, place(), checkpoint, rows)

    writer = AsyncCheckpointWriter(
        storage,
        keep=checkpoints_to_keep(settings),
        max_missed=settings.faults.missed_checkpoints,
        save_fallback=elsewhere,
        beside=MetricsMirror(folder, storage),
        on_superseded=on_superseded,
    )
    try:
        yield writer
    finally:
        writer.close()


def _begin(storage: Storage, former: tuple[Storage, ...], new: bool) -> FencedStorage:
    """A new attempt, in the storage and in the one that the run had until now."""
    above = 0
    for place in former:
        with suppress(OSError):  # it may be why another is taken
            above = acquire_lease(place).number - 1  # it is one attempt, wherever it is noted
    return FencedStorage(storage, acquire_lease(storage, above=above, new=new))


def _keep_settings(storage: FencedStorage, settings: Settings, new: bool) -> None:
    """The settings into the storage; a new run that cannot even do that leaves no trace."""
    try:
        write_settings(storage, settings)
    except OSError:
        if new:
            with suppress(OSError):
                storage.remove(storage.attempt.name)
        raise


def _bring_along(
    resume: Checkpoint, former: tuple[Storage, ...], storage: Storage, settings: Settings
) -> None:
    """What the run goes on from, and its best checkpoint, into its storage, where they are not."""
    scores: list[CheckpointScore] = []
    for place in former:
        with suppress(OSError, RunDirError):
            best = read_best_score(place)
            if best is not None:
                brought, _ = load_named_checkpoint(place, str(best.iteration))
                save_checkpoint(storage, brought, keep=checkpoints_to_keep(settings))
                scores.append(best)
    save_checkpoint(storage, resume, keep=checkpoints_to_keep(settings), scores=scores)
