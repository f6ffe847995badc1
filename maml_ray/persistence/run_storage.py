"""Where a run is kept: in its own folder, or under a URL that outlives the machine.

Under a URL lie the run's checkpoints, the notes of its attempts, its settings, and its metrics in
pieces of a hundred rows, so that a long run does not send all of them again with every checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from itertools import count, groupby
from pathlib import Path

from maml_ray.common.errors import RunDirError, UserError, error_reason
from maml_ray.common.safe_files import write_atomic
from maml_ray.common.yaml_data import YamlError, parse_yaml
from maml_ray.config.loading import MAX_FILE_BYTES, dump_settings, load_settings, validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.staleness import checkpoints_to_keep
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import save_checkpoint
from maml_ray.persistence.lease import FencedStorage
from maml_ray.persistence.metrics_file import parse_metrics, read_metrics
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage, Storage, is_same_storage, open_storage

_SETTINGS = "settings.yaml"
_METRICS = "metrics"
_PIECE = re.compile(r"[0-9]{6,12}\.jsonl")
_ROWS = 100
"""Iterations in one piece of the metrics."""


def open_run_storage(folder: RunDir, settings: Settings) -> Storage:
    """The storage of the run in ``folder``: that folder, or its own under ``run.storage``.

    Raises:
        StorageError: there can be none at that URL.
    """
    if settings.run.storage is None:
        return LocalStorage(folder.path)
    return open_storage(f"{settings.run.storage.rstrip('/')}/{folder.path.resolve().name}")


def read_settings(storage: Storage) -> Settings | None:
    """The settings of the run that is kept in ``storage``; None where none is.

    Raises:
        RunDirError: they cannot be read.
    """
    place = f"{storage}/{_SETTINGS}"
    try:
        content = storage.read(_SETTINGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirError(f"cannot read {place}: {error_reason(error)}") from None
    try:
        if len(content) > MAX_FILE_BYTES:
            raise RunDirError(f"it is larger than {MAX_FILE_BYTES:,} bytes")
        return validate_settings(parse_yaml(content.decode(), place))
    except (UserError, YamlError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise RunDirError(f"{place} does not hold the settings of a run: {error}") from None


def write_settings(storage: Storage, settings: Settings) -> None:
    """Put a run's settings into its storage, where they are not there yet.

    Raises:
        OSError: the storage failed.
    """
    content = dump_settings(settings).encode()
    try:
        if storage.read(_SETTINGS) == content:
            return
    except FileNotFoundError:
        pass
    storage.write(_SETTINGS, content)


class MetricsMirror:
    """Brings the metrics up to date in the storage; the run folder's copy leads.

    Args:
        folder: of the run.
        storage: where the copy goes; the same folder needs none.
    """

    def __init__(self, folder: RunDir, storage: Storage) -> None:
        self._folder, self._storage = folder, storage
        self._needed = not is_run_dir(storage, folder)
        self._pieces = 0

    def __call__(self) -> None:
        """Write what is new since the last call.

        Raises:
            OSError: the storage failed.
        """
        if not self._needed or not self._folder.metrics.exists():
            return
        rows = read_metrics(self._folder.metrics)
        for piece, lines in groupby(rows, key=lambda row: int(row["iteration"]) // _ROWS):
            if piece >= self._pieces:
                text = "".join(json.dumps(line) + "\n" for line in lines)
                self._storage.write(f"{_METRICS}/{piece:06d}.jsonl", text.encode())
        self._pieces = int(rows[-1]["iteration"]) // _ROWS if rows else 0


def fetch_run(url: str, directory: Path) -> RunDir:
    """A run folder of what lies at ``url``; where it is there already, that one.

    Metrics are left to :func:`fetch_metrics`, which knows how far the run has come.

    Raises:
        RunDirError: there is no run at the URL, it cannot be read, or the folder is that of
            another run.
        StorageError: there can be none at that URL.
    """
    above, _, name = url.rstrip("/").rpartition("/")
    storage, folder = open_storage(url), RunDir(directory / name)
    if name in ("", ".", "..") or above.endswith("/"):
        raise RunDirError(f"there is no run at {url}: name the run's own folder")
    if os.path.lexists(folder.settings):
        place = open_run_storage(folder, load_settings(folder.settings))
        if not is_same_storage(place, storage):
            raise RunDirError(
                f"{folder.path} is a run that is kept in {place}, not at {url}: go on with it by "
                f"--resume {folder.path}, or move the folder away"
            )
        return folder
    settings = read_settings(storage)
    if settings is None:
        raise RunDirError(f"there is no run at {url}: it has no {_SETTINGS}")
    # It may have been moved since: it is gone on with where it was found.
    found = settings.model_copy(update={"run": settings.run.model_copy(update={"storage": above})})
    try:
        LocalStorage(folder.path).write(_SETTINGS, dump_settings(found).encode())
    except OSError as error:
        raise RunDirError(f"cannot fetch the run at {url}: {error_reason(error)}") from None
    return folder


def fetch_metrics(storage: Storage, folder: RunDir, before: int) -> None:
    """Add the rows of iterations ``before`` one that the run folder lacks: another machine's.

    Raises:
        RunDirError: they cannot be read, or not be written.
    """
    if is_run_dir(storage, folder):
        return
    ours = {r["iteration"]: r for r in read_metrics(folder.metrics)} if _told(folder) else {}
    if all(iteration in ours for iteration in range(before)):
        return
    try:
        pieces = [name for name in storage.names(_METRICS) if _PIECE.fullmatch(name)]
        theirs = {
            row["iteration"]: row
            for name in pieces
            for row in parse_metrics(
                storage.read(f"{_METRICS}/{name}"), f"{storage}/{_METRICS}/{name}"
            )
            if row["iteration"] < before
        }
        rows = sorted({**theirs, **ours}.items())
        write_atomic(folder.metrics, "".join(json.dumps(row) + "\n" for _, row in rows))
    except OSError as error:
        raise RunDirError(f"cannot fetch the metrics in {storage}: {error_reason(error)}") from None


def save_fallback(settings: Settings, place: RunDir, checkpoint: Checkpoint, rows: str) -> str:
    """Write a run folder of what is in memory, and say how to go on from it.

    Args:
        settings: of the run, which cannot be written to, or its storage cannot.
        place: a folder that is this run's alone.
        checkpoint: the newest.
        rows: lines of metrics.

    Raises:
        OSError: nor can it be written there.
    """
    here = settings.model_copy(update={"run": settings.run.model_copy(update={"storage": None})})
    storage = LocalStorage(place.path)
    save_checkpoint(storage, checkpoint, keep=checkpoints_to_keep(settings))
    storage.write(place.metrics.name, rows.encode())
    storage.write(place.settings.name, dump_settings(here).encode())
    return f"{place.path}: go on from it with maml-ray train --resume {place.path}"


def unused_run_dir(base: Path, name: str) -> RunDir:
    """A folder below ``base`` that is not there yet, of ``name`` or numbered."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return RunDir(next(base / each for each in names if not os.path.lexists(base / each)))


def is_run_dir(storage: Storage, folder: RunDir) -> bool:
    """Whether a run's storage is its folder."""
    inner = storage.storage if isinstance(storage, FencedStorage) else storage
    return is_same_storage(inner, LocalStorage(folder.path))


def checkpoint_storages(folder: RunDir, settings: Settings) -> tuple[Storage, ...]:
    """Where a run may have checkpoints: in its storage, and in the one it had until now.

    Args:
        folder: of the run; its recorded settings name the latter.
        settings: that it is to go on with.
    """
    now, before = (
        open_run_storage(folder, settings),
        open_run_storage(folder, load_settings(folder.settings)),
    )
    return (now,) if is_same_storage(now, before) else (now, before)


def _told(folder: RunDir) -> bool:
    return os.path.lexists(folder.metrics)
