"""Store a run in its own directory, or under a URL that outlives the machine.

A URL holds the run's checkpoints, leases and settings, and its metrics in files of a hundred rows,
so that a long run does not upload all of them again with every checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from itertools import count, groupby
from pathlib import Path

from maml_ray.common.commands import quote_location
from maml_ray.common.errors import RunDirError, UserError, error_reason
from maml_ray.common.locations import escape_path, expand_location, expand_path, is_url
from maml_ray.common.safe_files import write_atomic
from maml_ray.common.yaml_data import YamlError, parse_yaml
from maml_ray.config.loading import MAX_FILE_BYTES, dump_settings, load_settings, validate_settings
from maml_ray.config.sections import RunSettings
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
_METRICS_FILE = re.compile(r"[0-9]{6,12}\.jsonl")
_ROWS_PER_FILE = 100


def open_run_storage(run_dir: RunDir, settings: RunSettings) -> Storage:
    """Return the storage of a run: its directory, or one of the same name under ``run.storage``.

    Raises:
        LocationError: ``run.storage`` has a variable that this machine lacks.
        StorageError: ``run.storage`` is not a valid URL.
    """
    parent = storage_location(settings)
    if parent is None:
        return LocalStorage(run_dir.path)
    return open_storage(f"{parent.rstrip('/')}/{run_dir.path.resolve().name}")


def storage_location(settings: RunSettings) -> str | None:
    """Return ``run.storage`` as a URL or as a path on this machine; None if it is null.

    Raises:
        LocationError: it has a variable that this machine lacks.
    """
    return None if settings.storage is None else expand_location(settings.storage, "run.storage")


def check_locations(settings: Settings, run_dir: RunDir | None = None) -> None:
    """Check the settings that are paths or URLs, as far as this machine can without using them.

    Args:
        settings: of the run.
        run_dir: its directory; None if it will be made in ``run.directory``.

    Raises:
        LocationError: one has a variable or user that this machine lacks.
        StorageError: ``run.storage`` has an unknown protocol, or one whose package is missing.
    """
    if run_dir is None:
        expand_path(settings.run.directory, "run.directory")
    if settings.faults.fallback_directory is not None:
        expand_path(settings.faults.fallback_directory, "faults.fallback_directory")
    if (location := storage_location(settings.run)) is not None:
        open_storage(location)


def checkpoint_storages(run_dir: RunDir, settings: RunSettings) -> tuple[Storage, ...]:
    """Return the storages that may hold checkpoints of a run: its new one and its previous one.

    Args:
        run_dir: directory of the run; its recorded settings name the previous storage.
        settings: settings to resume the run with.
    """
    recorded = load_settings(run_dir.settings, recorded=True)
    new, previous = open_run_storage(run_dir, settings), open_run_storage(run_dir, recorded.run)
    return (new,) if is_same_storage(new, previous) else (new, previous)


def is_run_dir(storage: Storage, run_dir: RunDir) -> bool:
    """Return whether the run's storage is its own directory."""
    inner = storage.storage if isinstance(storage, FencedStorage) else storage
    return is_same_storage(inner, LocalStorage(run_dir.path))


def read_settings(storage: Storage) -> Settings | None:
    """Return the settings of the run in ``storage``; None if it holds no run.

    Raises:
        RunDirError: they cannot be read.
    """
    name = f"{storage}/{_SETTINGS}"
    try:
        content = storage.read(_SETTINGS, MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirError(f"cannot read {name}: {error_reason(error)}") from None
    try:
        return validate_settings(parse_yaml(content.decode(), name), recorded=True)
    except (UserError, YamlError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise RunDirError(f"{name} does not hold the settings of a run: {error}") from None


def write_settings(storage: Storage, settings: Settings) -> None:
    """Write a run's settings to its storage unless they are there already.

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
    """Copies the metrics from the run directory to the run's storage.

    Args:
        run_dir: directory of the run.
        storage: storage of the run; nothing is copied if it is the same directory.
    """

    def __init__(self, run_dir: RunDir, storage: Storage) -> None:
        self._run_dir, self._storage = run_dir, storage
        self._is_needed = not is_run_dir(storage, run_dir)
        self._first_open_file = 0  # files below this number are complete

    def sync(self) -> None:
        """Write the rows added since the last call.

        Raises:
            OSError: the storage failed.
        """
        if not self._is_needed or not self._run_dir.metrics.exists():
            return
        rows = read_metrics(self._run_dir.metrics)
        for number, lines in groupby(rows, key=_file_number):
            if number >= self._first_open_file:
                content = "".join(json.dumps(line) + "\n" for line in lines)
                self._storage.write(f"{_METRICS}/{number:06d}.jsonl", content.encode())
        self._first_open_file = _file_number(rows[-1]) if rows else 0


def fetch_run(url: str, directory: Path) -> RunDir:
    """Create a run directory, with the settings, for the run at ``url``; return an existing one.

    :func:`fetch_metrics` fetches the metrics, since it must know how far the run has come.

    Raises:
        RunDirError: there is no run at the URL, it cannot be read, or the directory belongs to
            another run.
        StorageError: the URL is invalid.
    """
    parent_url, _, name = url.rstrip("/").rpartition("/")
    storage, run_dir = open_storage(url), RunDir(directory / name)
    if name in ("", ".", "..") or parent_url.endswith("/"):
        raise RunDirError(f"there is no run at {url}: name the run's own directory")
    if os.path.lexists(run_dir.settings):
        recorded = load_settings(run_dir.settings, recorded=True)
        its_storage = open_run_storage(run_dir, recorded.run)
        if not is_same_storage(its_storage, storage):
            raise RunDirError(
                f"{run_dir.path} is a run stored in {its_storage}, not in {url}: resume it with "
                f"--resume {quote_location(run_dir.path)}, or move the directory away"
            )
        return run_dir
    settings = read_settings(storage)
    if settings is None:
        raise RunDirError(f"there is no run at {url}: it has no {_SETTINGS}")
    # The run may have been moved; it continues where it was found.
    place = parent_url if is_url(parent_url) else escape_path(Path(parent_url))
    settings = _with_storage(settings, place)
    try:
        LocalStorage(run_dir.path).write(_SETTINGS, dump_settings(settings).encode())
    except OSError as error:
        raise RunDirError(f"cannot fetch the run at {url}: {error_reason(error)}") from None
    return run_dir


def fetch_metrics(storage: Storage, run_dir: RunDir, before: int) -> None:
    """Copy the rows of iterations below ``before`` that the run directory lacks from the storage.

    They are missing if another machine has carried on the run.

    Raises:
        RunDirError: they cannot be read or written.
    """
    if is_run_dir(storage, run_dir):
        return
    local = read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []
    rows = {row["iteration"]: row for row in local}
    if all(iteration in rows for iteration in range(before)):
        return
    try:
        for name in filter(_METRICS_FILE.fullmatch, storage.names(_METRICS)):
            path = f"{_METRICS}/{name}"
            for row in parse_metrics(storage.read(path), f"{storage}/{path}"):
                if row["iteration"] < before:
                    rows.setdefault(row["iteration"], row)
        lines = [json.dumps(row) + "\n" for _, row in sorted(rows.items())]
        write_atomic(run_dir.metrics, "".join(lines))
    except OSError as error:
        raise RunDirError(f"cannot fetch the metrics in {storage}: {error_reason(error)}") from None


def save_fallback(settings: Settings, run_dir: RunDir, checkpoint: Checkpoint, rows: bytes) -> str:
    """Save a run whose directory or storage cannot be written to in another directory.

    Args:
        settings: settings of the run.
        run_dir: new directory to save it in.
        checkpoint: newest checkpoint.
        rows: content of ``metrics.jsonl``.

    Returns:
        The directory, to resume from.

    Raises:
        OSError: it cannot be written there either.
    """
    storage = LocalStorage(run_dir.path)
    save_checkpoint(storage, checkpoint, keep=checkpoints_to_keep(settings))
    storage.write(run_dir.metrics.name, rows)
    local = _with_storage(settings, None)
    storage.write(run_dir.settings.name, dump_settings(local).encode())
    return str(run_dir.path)


def unused_run_dir(base: Path, name: str) -> RunDir:
    """Return a new directory in ``base`` called ``name``, with a number appended if it exists."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return RunDir(next(base / each for each in names if not os.path.lexists(base / each)))


def _with_storage(settings: Settings, url: str | None) -> Settings:
    run = settings.run.model_copy(update={"storage": url})
    return settings.model_copy(update={"run": run})


def _file_number(row: dict[str, int]) -> int:
    return int(row["iteration"]) // _ROWS_PER_FILE
