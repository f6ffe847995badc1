"""One living run a folder: a lock that the kernel holds for the process, and drops when it dies.

``<run>/.lock`` is locked with ``flock``; what is written in it (host, process id, since when) is
only for the sentence that refuses the second one. The file may stay behind: a killed run leaves
nothing that has to be cleared away.
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

try:
    import fcntl
except ImportError:  # Windows has none: a run there goes on without a lock
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
_IN_USE = (errno.EWOULDBLOCK, errno.EACCES)
_LONGEST_NOTE = 1000


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; made where it is missing, and gone again if left empty.

    Programs started meanwhile do not inherit the lock: it ends with this process, not with them.
    Where the file system has no locks a warning says so, and the run goes on without.

    Args:
        folder: of the run.

    Raises:
        RunDirError: another living run holds the folder, or it cannot be written.
    """
    made = _make(folder)
    try:
        descriptor = _locked(folder)
        try:
            yield
        finally:
            with suppress(OSError):  # while it is still held: nobody else's file is removed
                if made and os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
            os.close(descriptor)
    finally:
        for path in made:
            with suppress(OSError):  # not empty: a run has settled in
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make ``folder``; those of it and its parents that were missing, innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from None
    return missing


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock."""
    while True:
        try:
            descriptor = _opened(folder / LOCK)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            _lock(descriptor, folder)
            if _still_there(descriptor, folder / LOCK):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has removed it since: what we hold guards nothing


def _opened(path: Path) -> int:
    """The lock file, made if missing: never through a link, never waiting, not inherited."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{LOCK} is not a regular file", str(path))
    return descriptor


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            raise RunDirError(
                f"{folder} is in use by a living run{_holder(descriptor)}: stop it first, "
                "or name another folder"
            ) from None
        if error.errno not in _NO_LOCKS:
            raise _unusable(folder, error) from None
        warnings.warn(
            f"the file system of {folder} has no locks: nothing keeps a second run out of it",
            stacklevel=2,
        )


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write down who holds the lock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})
    with suppress(OSError):  # a full disk: the lock itself holds
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note.encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the lock, as far as the file says."""
    try:
        note = json.loads(os.pread(descriptor, _LONGEST_NOTE, 0))
        host, pid, since = (str(note[key])[:80] for key in ("host", "pid", "since"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({host}, pid {pid}, since {since})"


def _unusable(folder: Path, error: OSError | ValueError) -> RunDirError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return RunDirError(f"cannot write to the run folder {folder}: {reason or error}")
