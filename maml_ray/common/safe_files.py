"""Read files without hanging or filling the memory; write them whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path


class UnreadableFile(Exception):
    """A file cannot be read. The message says why and is meant to follow its name."""


def read_bytes(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Return the content of a regular file.

    Pipes and devices are refused: they can block or have no end. So is ``<(...)`` of a shell,
    which can be read once only, since the name is kept and read again later. ``/dev/stdin`` is
    accepted if it is a file.

    Args:
        path: of the file.
        max_bytes: largest size allowed.

    Raises:
        UnreadableFile: it is missing, no regular file or too large, or the storage fails.
    """
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableFile("it is not a regular file")
            content = file.read(-1 if max_bytes is None else max_bytes + 1)
    except OSError as error:
        raise UnreadableFile(error.strerror or str(error)) from None
    except ValueError as error:  # a null byte or a surrogate in the name
        raise UnreadableFile(f"no file can have that name ({error})") from None
    if max_bytes is not None and len(content) > max_bytes:
        raise UnreadableFile(f"it is larger than {max_bytes:,} bytes")
    return content


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
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
