"""Read files without hanging or filling the memory; write them whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1_000_000


class UnreadableFile(Exception):
    """A file cannot be read. The message says why and is meant to follow its name."""


class UnsuitableFile(OSError):
    """A file is there, but is no regular file or too large; the message says which."""


def check_size(size: int, max_bytes: int) -> None:
    """Refuse a file of ``size`` bytes before it is read.

    Raises:
        UnsuitableFile: it is larger than ``max_bytes``.
    """
    if size > max_bytes:
        raise UnsuitableFile(f"it has {size:,} bytes, and at most {max_bytes:,} are read")


@contextmanager
def open_regular(path: Path, *, max_bytes: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most ``max_bytes`` for reading.

    Pipes and devices are refused: they can block or have no end. So is ``<(...)`` of a shell,
    which can be read once only, since the name is kept and read again later. ``/dev/stdin`` is
    accepted if it is a file.

    Raises:
        UnsuitableFile: it is no regular file or too large.
        OSError: it is missing, or the storage fails.
    """
    with open(path, "rb", opener=_open_without_blocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnsuitableFile("it is not a regular file")
        check_size(status.st_size, max_bytes)
        yield file


def read_open(file: BinaryIO, max_bytes: int) -> bytes:
    """Return the content of a file of :func:`open_regular`, in no more memory than it needs.

    Raises:
        UnsuitableFile: it has grown beyond ``max_bytes``, as files in ``/proc`` do.
    """
    content = file.read(os.fstat(file.fileno()).st_size + 1)
    while more := file.read(min(_CHUNK_BYTES, max(0, max_bytes + 1 - len(content)))):
        content += more
    check_size(len(content), max_bytes)
    return content


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file, whose size is checked before it is read.

    Args:
        path: of the file.
        max_bytes: largest size allowed.

    Raises:
        UnreadableFile: it is missing, no regular file or too large, or the storage fails.
    """
    try:
        with open_regular(path, max_bytes=max_bytes) as file:
            return read_open(file, max_bytes)
    except OSError as error:
        raise UnreadableFile(error.strerror or str(error)) from None
    except ValueError as error:  # a null byte or a surrogate in the name
        raise UnreadableFile(f"no file can have that name ({error})") from None


def read_text(path: Path, *, max_bytes: int) -> str:
    """Return the content of a regular file as text.

    Raises:
        UnreadableFile: as for :func:`read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes=max_bytes).decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile("it is not UTF-8 text") from None


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all; surrogates are written escaped.

    A link at ``path`` is replaced, not followed.

    Raises:
        OSError: the storage failed; what was at ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to a file as UTF-8; a pipe is not waited for.

    Raises:
        OSError: the storage failed, or a pipe has no reader.
    """
    with open(path, "a", encoding="utf-8", opener=_open_without_blocking) as file:
        file.write(text)


class RetryingFile:
    """Append to a file; what a full disk refuses is kept and written with the next append.

    Args:
        path: of the file, which may exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = b""
        self._size = path.stat().st_size if path.exists() else 0

    def append(self, content: bytes) -> None:
        """Write what is pending and ``content``, or keep both for the next attempt."""
        self._pending += content
        try:
            # Overwrites what a failed attempt has written in part.
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.seek(self._size)
                file.write(self._pending)
                file.truncate()
        except OSError:
            return
        self._size += len(self._pending)
        self._pending = b""

    def close(self) -> None:
        """Try once more to write what is pending."""
        if self._pending:
            self.append(b"")


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
