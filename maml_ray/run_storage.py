"""Where a run is kept: in its own folder, or under a URL that outlives the machine.

Under a URL lie the run's checkpoints, its settings, and its metrics in pieces of a hundred rows,
so that a long run does not send all of them again with every checkpoint.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from maml_ray.checkpoint import save_checkpoint
from maml_ray.checkpoint_files import Checkpoint
from maml_ray.config import Settings, dump_settings
from maml_ray.errors import RunFolderError
from maml_ray.report.metrics import read_metrics
from maml_ray.run_folder import RunFolder
from maml_ray.storage import LocalStorage, Storage, open_storage

_SETTINGS = "settings.yaml"
_METRICS = "metrics"
_ROWS = 100
"""Iterations in one piece of the metrics."""


def run_storage(folder: RunFolder, settings: Settings) -> Storage:
    """The storage of the run in ``folder``: that folder, or its own under ``run.storage``.

    Raises:
        StorageError: there can be none at that URL.
    """
    if settings.run.storage is None:
        return LocalStorage(folder.path)
    return open_storage(f"{settings.run.storage.rstrip('/')}/{folder.path.resolve().name}")


class Mirror:
    """Brings settings and metrics up to date in the storage; the run folder's copy leads.

    Args:
        folder: of the run.
        storage: where the copy goes; the same folder needs none.
    """

    def __init__(self, folder: RunFolder, storage: Storage) -> None:
        self._folder, self._storage = folder, storage
        self._needed = not _is_at(storage, folder)
        self._settings_are_there = False
        self._pieces = 0

    def __call__(self) -> None:
        """Write what is new since the last call.

        Raises:
            OSError: the storage failed.
        """
        if not self._needed:
            return
        if not self._settings_are_there:
            self._storage.write(_SETTINGS, self._folder.settings.read_bytes())
            self._settings_are_there = True
        if not self._folder.metrics.exists():
            return
        rows = read_metrics(self._folder.metrics)
        for piece, lines in groupby(rows, key=lambda row: int(row["iteration"]) // _ROWS):
            if piece >= self._pieces:
                text = "".join(json.dumps(line) + "\n" for line in lines)
                self._storage.write(f"{_METRICS}/{piece:06d}.jsonl", text.encode())
        self._pieces = int(rows[-1]["iteration"]) // _ROWS if rows else 0


def fetch_run(url: str, directory: Path) -> RunFolder:
    """A run folder of what lies at ``url``; one that is there already is left as it is.

    Raises:
        RunFolderError: there is no run at the URL, or it cannot be read.
        StorageError: there can be none at that URL.
    """
    storage = open_storage(url)
    folder = RunFolder(directory / url.rstrip("/").rpartition("/")[2])
    if folder.settings.exists():
        return folder
    try:
        settings = storage.read(_SETTINGS)
        pieces = [storage.read(f"{_METRICS}/{name}") for name in storage.names(_METRICS)]
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.metrics.write_bytes(b"".join(pieces))
        folder.settings.write_bytes(settings)  # last: it is what makes it a run folder
    except FileNotFoundError:
        raise RunFolderError(f"there is no run at {url}: it has no {_SETTINGS}") from None
    except OSError as error:
        raise RunFolderError(f"cannot fetch the run at {url}: {error}") from None
    return folder


def save_elsewhere(
    settings: Settings, folder: RunFolder, checkpoint: Checkpoint, rows: str, base: Path
) -> str:
    """Write a run folder of what is in memory, and say how to go on from it.

    Args:
        settings: of the run.
        folder: of the run, which cannot be written to, or its storage cannot.
        checkpoint: the newest.
        rows: lines of metrics.
        base: where the new folder goes.

    Raises:
        OSError: nor can it be written there.
    """
    place = RunFolder(base / folder.path.resolve().name)
    here = settings.model_copy(update={"run": settings.run.model_copy(update={"storage": None})})
    storage = LocalStorage(place.path)
    save_checkpoint(storage, checkpoint, keep=settings.run.keep_checkpoints)
    storage.write(place.metrics.name, rows.encode())
    storage.write(place.settings.name, dump_settings(here).encode())
    return f"{place.path}: go on from it with maml-ray train --resume {place.path}"


def _is_at(storage: Storage, folder: RunFolder) -> bool:
    return isinstance(storage, LocalStorage) and storage.path.resolve() == folder.path.resolve()
