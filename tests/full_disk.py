"""A disk that is full when a test says so, under everything that opens a file to write."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

_MODES = {"wb": "w+", "ab": "a+", "r+b": "r+"}


@dataclass
class Disk:
    """Whether it is full now."""

    full: bool = False


class _File(io.BufferedRandom):
    """A file that takes half of what is written and then says that there is no room."""

    disk: Disk

    def write(self, content: Any) -> int:
        if self.disk.full:
            super().write(bytes(content)[: len(content) // 2])
            super().flush()
            raise OSError(28, "No space left on device")
        return super().write(content)


@contextmanager
def full_disk() -> Iterator[Disk]:
    """For the time of the block, files that ``Path.open`` or ``open`` makes ask the disk."""
    disk = Disk()
    opened = io.open

    def opener(file: Any, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        if mode not in _MODES:
            return opened(file, mode, *args, **keywords)
        made = _File(io.FileIO(file, _MODES[mode]))
        made.disk = disk
        return made

    with mock.patch.object(io, "open", opener), mock.patch.object(builtins, "open", opener):
        yield disk
