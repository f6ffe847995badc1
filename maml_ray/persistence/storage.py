"""Store named files, each complete or absent, in a local directory or behind any fsspec URL.

File names are relative and use ``/``. Failures are :class:`OSError` with a one-sentence message.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from maml_ray.common.errors import UserError
from maml_ray.common.locations import OBJECT_STORES, is_url, location_problem
from maml_ray.common.safe_files import UnsuitableFile, check_size, open_regular, read_open

REQUEST_TIMEOUT_S, WRITE_TIMEOUT_S = 30.0, 600.0
"""Time limits of remote storage: for small requests, and for writing a file."""
MAX_READ_BYTES = 10_000_000
"""Largest file read by a caller who names no limit: all but the arrays of a policy are smaller."""
_PARTIAL = ".partial"
Result = TypeVar("Result")


class StorageError(UserError, ValueError):
    """A URL cannot be used as a storage; the message says why."""


class Storage(Protocol):
    """A place where files are stored."""

    def write(self, name: str, content: bytes) -> None:
        """Store ``content`` as ``name``, durably when this returns.

        Raises:
            OSError: it could not be written; the previous file of that name, if any, is intact.
        """

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return the content of ``name``, whose size is checked before it is read.

        Raises:
            FileNotFoundError: it does not exist.
            UnsuitableFile: it has more than ``max_bytes``, or is no regular file.
            OSError: it cannot be read.
        """

    def names(self, directory: str) -> list[str]:
        """Return the sorted names of the entries of ``directory``; empty if it does not exist.

        Raises:
            OSError: it cannot be listed.
        """

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with its content, if it exists.

        Raises:
            OSError: it cannot be removed.
        """

    def __str__(self) -> str:
        """Return the path or URL, for messages."""


def open_storage(location: str | Path) -> Storage:
    """Return the storage at a path or URL, without accessing it yet.

    Args:
        location: of the storage; a path as it is on this machine (see
            :func:`maml_ray.common.locations.expand_location`).

    Raises:
        StorageError: the URL has another form, its protocol is unknown, or its package is not
            installed.
    """
    url = str(location)
    if not is_url(url):
        return LocalStorage(Path(url))
    if problem := location_problem(url):
        raise StorageError(f"there is no storage at {url!r}: {problem}")
    protocol, _, path = url.partition("://")
    return LocalStorage(Path(path)) if protocol in ("file", "local") else RemoteStorage(url)


def is_partial(name: str) -> bool:
    """Return whether a directory entry is the temporary file of an interrupted write."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def is_same_storage(one: Storage, other: Storage) -> bool:
    """Return whether two storages are the same place."""
    if isinstance(one, LocalStorage) and isinstance(other, LocalStorage):
        return one.path.resolve() == other.path.resolve()
    return type(one) is type(other) and str(one) == str(other)


def validate_name(name: str) -> str:
    """Return ``name`` if it stays inside its storage.

    Raises:
        ValueError: it would lead out of it.
    """
    if name.startswith("/") or "\\" in name or any(part in ("", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} leads out of its storage")
    return name


class LocalStorage:
    """A directory; files are written to a temporary name, synced, and renamed.

    Args:
        path: directory; created by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, content: bytes) -> None:
        """Implement :meth:`Storage.write`; the file survives a power cut."""
        path = self.path / validate_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Random, since programs in containers that share the directory may share a process id.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
        _sync_directory(path.parent.parent)  # holds the entry of a parent that was just created

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Implement :meth:`Storage.read`."""
        with open_regular(self.path / validate_name(name), max_bytes=max_bytes) as file:
            return read_open(file, max_bytes)

    def names(self, directory: str) -> list[str]:
        """Implement :meth:`Storage.names`; includes temporary files of interrupted writes."""
        try:
            return sorted(path.name for path in (self.path / validate_name(directory)).iterdir())
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Implement :meth:`Storage.remove`."""
        path = self.path / validate_name(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class RemoteStorage:
    """Any storage that fsspec supports; object stores write a file completely or not at all.

    Args:
        url: for example ``s3://bucket/runs/NAME``. Credentials come from the environment, as for
            the protocol's own programs.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        try:
            # Other programs write to the storage, so listings must not be cached.
            self._files, self._root = fsspec.core.url_to_fs(self._url, use_listings_cache=False)
        except ImportError as error:
            protocol = url.partition("://")[0]
            raise StorageError(
                f"{url!r} needs a package that is not installed ({error}): "
                f"pip install 'maml-ray[{protocol}]', or fsspec's package for {protocol}"
            ) from None
        except ValueError as error:
            raise StorageError(f"there is no storage at {url!r}: {error}") from None

    def __str__(self) -> str:
        return self._url

    def write(self, name: str, content: bytes) -> None:
        """Implement :meth:`Storage.write`."""
        path = self._path(name)

        def put() -> None:
            if not _is_object_store(self._files):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

        self._request(f"write {name}", put, WRITE_TIMEOUT_S)

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Implement :meth:`Storage.read`."""
        path = self._path(name)

        def get() -> bytes:
            check_size(self._files.size(path) or 0, max_bytes)
            content: bytes = self._files.cat_file(path)
            return content

        return self._request(f"read {name}", get)

    def names(self, directory: str) -> list[str]:
        """Implement :meth:`Storage.names`."""
        path = self._path(directory)
        try:
            entries = self._request(f"list {directory}", lambda: self._files.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = {str(entry).rstrip("/").rpartition("/")[2] for entry in entries}
        # Some stores list an empty directory as its own single entry.
        return sorted(names - {path.rpartition("/")[2]} if len(names) == 1 else names)

    def remove(self, name: str) -> None:
        """Implement :meth:`Storage.remove`."""
        path = self._path(name)
        try:
            self._request(f"remove {name}", lambda: self._files.rm(path, recursive=True))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{validate_name(name)}"

    def _request(
        self, description: str, action: Callable[[], Result], timeout_s: float | None = None
    ) -> Result:
        """Run ``action`` with a time limit, and raise its errors as OSError.

        The libraries behind fsspec raise exceptions of their own, and some retry a server that
        never answers for an hour.
        """
        timeout = REQUEST_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            self._files.invalidate_cache()
            return call_with_timeout(timeout, action)
        except (FileNotFoundError, UnsuitableFile):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise OSError(f"cannot {description} in {self._url}: {reason}") from None


def call_with_timeout(timeout_s: float, action: Callable[[], Result]) -> Result:
    """Return the result of ``action``, run in a thread that is abandoned at the time limit.

    Raises:
        TimeoutError: it did not return within ``timeout_s`` seconds.
        Exception: any exception of ``action``.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="storage", daemon=True).start()
    try:
        return future.result(timeout=timeout_s)
    except TimeoutError:
        if future.done():  # raised by ``action`` itself
            raise
        raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None


def _is_object_store(files: Any) -> bool:
    """Return whether directories are only name prefixes, and making one could make a bucket."""
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    return bool(protocols & OBJECT_STORES)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
