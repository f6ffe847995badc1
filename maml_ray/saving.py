"""Keeping what a run has learned safe, while it learns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maml_ray.checkpoint_files import Checkpoint
from maml_ray.checkpoint_writer import CheckpointWriter
from maml_ray.config import Settings, dump_settings
from maml_ray.errors import RunFolderError
from maml_ray.run_folder import RunFolder
from maml_ray.run_storage import Mirror, run_storage, save_elsewhere
from maml_ray.storage import LocalStorage


def settle_in(folder: RunFolder, settings: Settings) -> None:
    """Make the run folder, with the settings in it.

    Raises:
        RunFolderError: it cannot be written to.
    """
    try:
        content = dump_settings(settings).encode()
        LocalStorage(folder.path).write(folder.settings.name, content)
    except OSError as error:
        raise RunFolderError(
            f"cannot write to the run folder {folder.path}: {error.strerror}"
        ) from None


@contextmanager
def saving(settings: Settings, folder: RunFolder) -> Iterator[CheckpointWriter]:
    """A writer of the run's checkpoints, for the time of the block.

    Raises:
        StorageError: there can be no storage at ``run.storage``.
    """
    storage = run_storage(folder, settings)
    chosen = settings.faults.fallback_directory
    base = Path(chosen) if chosen else Path(tempfile.gettempdir()) / "maml_ray-fallback"

    def elsewhere(checkpoint: Checkpoint) -> str:
        rows = folder.metrics.read_text(encoding="utf-8") if folder.metrics.exists() else ""
        return save_elsewhere(settings, folder, checkpoint, rows, base)

    writer = CheckpointWriter(
        storage,
        keep=settings.run.keep_checkpoints,
        missed_allowed=settings.faults.missed_checkpoints,
        save_elsewhere=elsewhere,
        beside=Mirror(folder, storage),
    )
    try:
        yield writer
    finally:
        writer.close()
