"""Storage: named files that are complete or absent, in a folder or behind any fsspec URL.

Names are relative and use ``/``. Whatever goes wrong is an :class:`OSError` with a sentence.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from maml_ray.common.errors import UserError

ANSWER_S, WRITE_S = 30.0, 600.0
"""How long a remote storage may take for a small answer, and for taking in a file."""
_PARTIAL = ".partial"
Result = TypeVar("Result")


class StorageError(UserError, ValueError):
    """There can be no storage at a URL; the sentence says why."""


class Storage(Protocol):
    """Where files are kept."""

    def write(self, name: str, content: bytes) -> None:
        """Keep ``content`` as ``name``: when this returns it is there, to stay.

        Raises:
            OSError: it could not be written; what had the name before is still there, or nothing.
        """

    def read(self, name: str) -> bytes:
        """The content of ``name``.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """

    def names(self, folder: str) -> list[str]:
        """Names of what lies in ``folder``, without it, sorted; none where there is no folder.

        Raises:
            OSError: it cannot be listed.
        """

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none.

        Raises:
            OSError: it cannot be removed.
        """

    def __str__(self) -> str:
        """Where it is, for people."""


def open_storage(place: str | Path) -> Storage:
    """The storage at a path or URL; nothing is made or asked of it yet.

    Raises:
        StorageError: the URL's protocol is not known, or its package is not installed; or it names
            a file by half of its path.
    """
    url = str(place)
    protocol, separator, rest = url.partition("://")
    if not separator:
        return LocalStorage(Path(url))
    if protocol not in ("file", "local"):
        return RemoteStorage(url)
    if not rest.startswith("/"):
        raise StorageError(f"there is no storage at {url!r}: write {protocol}:///{rest}")
    return LocalStorage(Path(rest))


def is_partial(name: str) -> bool:
    """Whether a file is what a write that was killed has left in a folder."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def is_same_storage(one: Storage, other: Storage) -> bool:
    """Whether two storages are one."""
    if isinstance(one, LocalStorage) and isinstance(other, LocalStorage):
        return one.path.resolve() == other.path.resolve()
    return type(one) is type(other) and str(one) == str(other)


def checked_name(name: str) -> str:
    """``name``, if it stays inside its storage.

    Raises:
        ValueError: it would lead out of it.
    """
    if name.startswith("/") or "\\" in name or any(part in ("", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} leads out of its storage")
    return name


class LocalStorage:
    """A folder: files are written aside, synced, and renamed into place.

    Args:
        path: of the folder, which the first write makes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, content: bytes) -> None:
        """See :meth:`Storage.write`; after a power cut too."""
        path = self.path / checked_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Random: programs in containers that share the folder may have the same process id.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        _sync_folder(path.parent.parent)  # which holds the folder's own name

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        path = self.path / checked_name(name)
        if path.exists() and not path.is_file():  # a pipe would be waited on for ever
            raise IsADirectoryError(errno.EISDIR, "it is not a regular file", str(path))
        return path.read_bytes()

    def names(self, folder: str) -> list[str]:
        """See :meth:`Storage.names`; what a killed write left behind is among them."""
        try:
            return sorted(path.name for path in (self.path / checked_name(folder)).iterdir())
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """See :meth:`Storage.remove`."""
        path = self.path / checked_name(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class RemoteStorage:
    """Anything that fsspec speaks to; object stores put a file whole or not at all.

    Args:
        url: e.g. ``s3://bucket/runs/NAME``. Credentials come from the environment, as the
            protocol's own programs take them.

    Raises:
        StorageError: the protocol is not known, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        try:
            # Another program may write there: what was listed once is no truth for ever.
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
        """See :meth:`Storage.write`."""
        path = self._path(name)

        def put() -> None:
            if not _is_object_store(self._files):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

        self._do(f"write {name}", put, WRITE_S)

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        path = self._path(name)
        content: bytes = self._do(f"read {name}", lambda: self._files.cat_file(path))
        return content

    def names(self, folder: str) -> list[str]:
        """See :meth:`Storage.names`."""
        path = self._path(folder)
        try:
            entries = self._do(f"list {folder}", lambda: self._files.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = {str(entry).rstrip("/").rpartition("/")[2] for entry in entries}
        return sorted(names - {path.rpartition("/")[2]} if len(names) == 1 else names)

    def remove(self, name: str) -> None:
        """See :meth:`Storage.remove`."""
        path = self._path(name)
        try:
            self._do(f"remove {name}", lambda: self._files.rm(path, recursive=True))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(name)}"

    def _do(self, what: str, action: Callable[[], Result], limit_s: float | None = None) -> Result:
        """Every library behind fsspec has exceptions of its own; here they are all OSErrors.

        And a patience of its own: some ask a server that never answers for an hour.
        """
        limit = ANSWER_S if limit_s is None else limit_s
        try:
            self._files.invalidate_cache()
            return call_with_timeout(limit, action)
        except FileNotFoundError:
            raise
        except Exception as error:
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise OSError(f"cannot {what} in {self._url}: {told}") from None


def call_with_timeout(limit_s: float, action: Callable[[], Result]) -> Result:
    """What ``action`` gives, in a thread that is left behind where it does not come back.

    Raises:
        TimeoutError: it has not within ``limit_s``.
        Exception: whatever it raises.
    """
    answer: Future[Result] = Future()

    def act() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=act, name="storage", daemon=True).start()
    try:
        return answer.result(timeout=limit_s)
    except TimeoutError:
        if answer.done():  # it has raised one itself
            raise
        raise TimeoutError(f"no answer within {limit_s:.0f} s") from None


def _is_object_store(files: Any) -> bool:
    """Where folders are but beginnings of names, and making one may make a bucket."""
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    return bool(protocols & {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2"})


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
