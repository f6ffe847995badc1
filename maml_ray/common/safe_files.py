"""Files read and written with no surprises, whatever lies at a path.

Reading neither hangs (a pipe), nor fills the memory (``/dev/zero``, a video); writing leaves the
whole file or the old one, and follows no link.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path


class UnreadableFile(Exception):
    """A file cannot be read; the words say why, and go behind its name."""


def read_bytes(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    A pipe is refused, and so is ``<(...)`` of a shell: it can be read but once, and the file's
    name is kept for later. A file on standard input, ``/dev/stdin``, is a file.

    Args:
        path: of the file.
        max_bytes: bytes that it may have.

    Raises:
        UnreadableFile: it is not there, no regular file, larger, or the storage fails.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnreadableFile("it is not a regular file")
            if max_bytes is None:
                return file.read()
            content = file.read(max_bytes + 1) if found.st_size <= max_bytes else b""
    except OSError as error:
        raise UnreadableFile(error.strerror or str(error)) from None
    except ValueError as error:  # a name with a null byte in it, or half of a character
        raise UnreadableFile(f"no file can have that name ({error})") from None
    if found.st_size > max_bytes or len(content) > max_bytes:
        raise UnreadableFile(f"it is larger than {max_bytes:,} bytes")
    return content


def read_text(path: Path, *, max_bytes: int) -> str:
    """The same, as UTF-8 text.

    Raises:
        UnreadableFile: as above, or it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes=max_bytes).decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile("it is not UTF-8 text") from None


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; half a character is written escaped.

    Raises:
        OSError: the storage failed; what was there is there.
    """
    descriptor, aside = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".partial", dir=path.parent
    )
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise


class RetryingFile:
    """A file that grows; what a full disk refuses of it is kept, and tried again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""
        self._size = path.stat().st_size if path.exists() else 0

    def append(self, content: bytes) -> None:
        """Write ``content``, and before it what waits; or let it wait as well."""
        self._waiting += content
        try:
            # Whatever half of it the last attempt left is overwritten.
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.seek(self._size)
                file.write(self._waiting)
                file.truncate()
        except OSError:
            return
        self._size += len(self._waiting)
        self._waiting = b""

    def close(self) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self.append(b"")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@cache  # while it is read, files that other threads make are readable by nobody else
def _umask() -> int:
    """What this process takes away from new files' permissions: it can only be read by setting."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
