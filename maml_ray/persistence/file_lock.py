"""Lock a run directory so that only one live process uses it.

``<run>/.lock`` is locked with ``flock``, which the kernel releases when the process dies. Its
content (host, process id, start time) only serves the message that refuses a second process. The
file may remain: a killed run leaves nothing to clean up.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maml_ray.common.errors import RunDirError
from maml_ray.common.signals import HeldSignals, forced_exit_cleanups

try:
    import fcntl
except ImportError:  # Windows has none: a run there has no lock
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
_IN_USE = (errno.EWOULDBLOCK, errno.EACCES)
_MAX_CONTENT_BYTES = 1000


@contextmanager
def lock_run_dir(path: Path) -> Iterator[None]:
    """Hold the lock of a run directory; create it if missing, and remove it again if left empty.

    Child processes do not inherit the lock. If the file system does not support locks, a warning
    is issued and the block runs without one.

    Raises:
        RunDirError: another live process holds the lock, or the directory cannot be written to.
    """
    lock = _RunDirLock(path)
    try:
        try:
            # A signal ends the program between any two statements, but not between creating a
            # file and noting that it exists.
            with HeldSignals():
                lock.acquire()
            yield
        finally:
            with HeldSignals():
                lock.release()
    finally:
        lock.release()  # in case a signal came just before they were held


class _RunDirLock:
    """The lock of a run directory, and the directories that were created for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._created: list[Path] = []
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Create the directory, and lock it; if that raises, :meth:`release` is needed too."""
        self._created = _missing_directories(self._path)
        forced_exit_cleanups.append(self._remove_if_empty)
        _create(self._path)
        self._descriptor = _acquire(self._path)

    def release(self) -> None:
        """Undo what :meth:`acquire` has done, unless it is undone."""
        self._remove_if_empty()
        with suppress(ValueError):
            forced_exit_cleanups.remove(self._remove_if_empty)
        descriptor, self._created, self._descriptor = self._descriptor, [], None
        if descriptor is not None:
            os.close(descriptor)

    def _remove_if_empty(self) -> None:
        """Remove the directories that were created, unless they hold more than the lock."""
        with suppress(OSError):  # still locked: no other run's file is removed
            is_ours = self._created and self._descriptor is not None
            if is_ours and os.listdir(self._path) == [LOCK]:
                (self._path / LOCK).unlink()
        for directory in self._created:
            with suppress(OSError):  # not empty
                directory.rmdir()


def _missing_directories(path: Path) -> list[Path]:
    """Return those of ``path`` and its parents that do not exist, innermost first."""
    try:
        return [each for each in (path, *path.parents) if not each.exists()]
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from None


def _create(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from None


def _acquire(path: Path) -> int:
    """Return a descriptor that holds the lock."""
    while True:
        try:
            descriptor = _open(path / LOCK)
        except OSError as error:
            raise _not_writable(path, error) from None
        try:
            _flock(descriptor, path)
            if _is_file_at(descriptor, path / LOCK):
                _write_holder(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its previous holder has removed the file: the lock protects nothing


def _open(path: Path) -> int:
    """Open or create the lock file without following links, blocking or being inherited."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{LOCK} is not a regular file", str(path))
    return descriptor


def _flock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            raise RunDirError(
                f"{path} is in use by a live run{_read_holder(descriptor)}: stop it first, "
                "or choose another directory"
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise _not_writable(path, error) from None
        warnings.warn(
            f"the file system of {path} has no locks: nothing keeps a second run out of it",
            stacklevel=2,
        )


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    with suppress(OSError):  # a full disk does not affect the lock itself
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> str:
    """Return who holds the lock, in parentheses; empty if the file does not say."""
    try:
        holder = json.loads(os.pread(descriptor, _MAX_CONTENT_BYTES, 0))
        host, pid, since = (str(holder[key])[:80] for key in ("host", "pid", "since"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({host}, pid {pid}, since {since})"


def _not_writable(path: Path, error: OSError | ValueError) -> RunDirError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return RunDirError(f"cannot write to the run directory {path}: {reason or error}")
