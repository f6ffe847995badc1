"""Prepare a run's directory and storage for an attempt, and its checkpoint writer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from maml_ray.common.errors import RunDirError, Superseded, error_reason
from maml_ray.common.locations import expand_path
from maml_ray.common.safe_files import UnreadableFile, read_bytes
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
from maml_ray.persistence.metrics_file import MAX_METRICS_BYTES
from maml_ray.persistence.provenance import record_provenance
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
    run_dir: RunDir, settings: Settings, resume: Checkpoint | None = None, *, new: bool = False
) -> FencedStorage:
    """Create the run directory with its settings, and start an attempt at the run.

    From here on no older attempt can write to the run's storage. If the run moves to another
    storage, the checkpoint to resume from is copied there before the settings name it: a crash in
    between loses nothing.

    Args:
        run_dir: run directory; created if needed.
        settings: settings of the run.
        resume: checkpoint that the run resumes from.
        new: fail if the storage already belongs to a run.

    Returns:
        The run's storage, which refuses writes once a newer attempt has started.

    Raises:
        RunDirError: the run directory or the storage cannot be written to, or the storage belongs
            to another run.
    """
    storages = checkpoint_storages(run_dir, settings.run) if run_dir.settings.exists() else ()
    previous = storages[1:]
    storage = open_run_storage(run_dir, settings.run)
    try:
        fenced = _start_attempt(storage, previous, new and not is_run_dir(storage, run_dir))
        if not is_run_dir(storage, run_dir):
            _store_settings(fenced, settings, new)
        if resume is not None:
            _copy_checkpoints(resume, previous, fenced, settings)
    except OSError as error:
        raise RunDirError(f"cannot write to {storage}: {error_reason(error)}") from None
    try:
        content = dump_settings(settings).encode()
        LocalStorage(run_dir.path).write(run_dir.settings.name, content)
    except OSError as error:
        raise RunDirError(
            f"cannot write to the run directory {run_dir.path}: {error_reason(error)}"
        ) from None
    record_provenance(run_dir)
    return fenced


@contextmanager
def open_checkpoint_writer(
    settings: Settings,
    run_dir: RunDir,
    storage: FencedStorage,
    on_superseded: Callable[[Superseded], None] = lambda error: None,
) -> Iterator[AsyncCheckpointWriter]:
    """Open the background writer of a run's checkpoints, and close it after the block.

    If the storage fails too often, the writer saves to ``faults.fallback_directory`` or to a
    temporary directory instead.
    """

    @cache  # one new directory per run: an existing one holds another run or an older fallback
    def fallback_dir() -> RunDir:
        # The system's temporary directory is shared: mkdtemp makes one that only this user can use.
        named = settings.faults.fallback_directory
        base = (
            Path(tempfile.mkdtemp(prefix="maml_ray-fallback-"))
            if named is None
            else expand_path(named, "faults.fallback_directory")
        )
        return unused_run_dir(base, run_dir.path.resolve().name)

    def save_to_fallback(checkpoint: Checkpoint) -> str:
        rows = b""
        with suppress(UnreadableFile):  # save the parameters even if the metrics cannot be read
            rows = read_bytes(run_dir.metrics, max_bytes=MAX_METRICS_BYTES)
        return save_fallback(settings, fallback_dir(), checkpoint, rows)

    writer = AsyncCheckpointWriter(
        storage,
        keep=checkpoints_to_keep(settings),
        max_missed=settings.faults.missed_checkpoints,
        save_fallback=save_to_fallback,
        before_write=MetricsMirror(run_dir, storage).sync,
        on_superseded=on_superseded,
    )
    try:
        yield writer
    finally:
        writer.close()


def _start_attempt(storage: Storage, previous: tuple[Storage, ...], new: bool) -> FencedStorage:
    """Acquire the lease of the storage and of the one that the run used before."""
    above = 0
    for old_storage in previous:
        with suppress(OSError):  # its failure may be the reason for the move
            above = acquire_lease(old_storage).attempt - 1  # the same number in both
    return FencedStorage(storage, acquire_lease(storage, above=above, new=new))


def _store_settings(storage: FencedStorage, settings: Settings, new: bool) -> None:
    """Write the settings to the storage; if that fails, a new run releases its lease."""
    try:
        write_settings(storage, settings)
    except OSError:
        if new:
            with suppress(OSError):
                storage.remove(storage.lease.name)
        raise


def _copy_checkpoints(
    resume: Checkpoint, previous: tuple[Storage, ...], storage: Storage, settings: Settings
) -> None:
    """Save ``resume``, and the best checkpoint of the previous storage, to ``storage``."""
    scores: list[CheckpointScore] = []
    for old_storage in previous:
        with suppress(OSError, RunDirError):
            best = read_best_score(old_storage)
            if best is not None:
                best_checkpoint, _ = load_named_checkpoint(old_storage, str(best.iteration))
                save_checkpoint(storage, best_checkpoint, keep=checkpoints_to_keep(settings))
                scores.append(best)
    save_checkpoint(storage, resume, keep=checkpoints_to_keep(settings), scores=scores)
