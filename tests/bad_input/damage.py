"""Ways in which a file of a run folder can be broken."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(bytes(content))


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def elsewhere(path: Path) -> None:
    """A link out of the run folder, to the very same content."""
    other = Path(tempfile.mkdtemp()) / path.name
    shutil.move(path, other)
    path.symlink_to(other)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


ANYWHERE: tuple[Damage, ...] = (
    missing,
    empty,
    folder,
    noise,
    truncated,
    flipped,
    loop,
    pipe,
    elsewhere,
    endless,
)

SHAPES: tuple[Any, ...] = (
    None,
    [],
    {},
    [1, 2],
    "text",
    7,
    True,
    {"format": 1},
    {"run": []},
    {"rows": 5},
)
"""JSON of another shape."""

ODD: tuple[Any, ...] = (
    None,
    "7",
    -1,
    True,
    [],
    {},
    [[]],
    {"a": {"b": []}},
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    2**70,
    "../../../etc/passwd",
    "\ud800",
    "a\0b",
)
"""What may stand in the place of a value."""


def nested_text(levels: int = 100_000) -> str:
    return "[" * levels + "]" * levels


def places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index of a JSON tree as a path."""
    found: list[tuple[Any, ...]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += places(value, (*above, key))
    return found


def replaced(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of ``tree`` with another value at ``place``; without it where that is ``...``."""
    tree = json.loads(json.dumps(tree))
    at = tree
    for key in place[:-1]:
        at = at[key]
    if value is ...:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return tree
