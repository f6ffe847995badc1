"""Read and validate ``metrics.jsonl``: one JSON object per meta-iteration."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from maml_ray.common.errors import RunDirError, error_reason, warn_of_damage
from maml_ray.common.safe_files import open_regular
from maml_ray.persistence.records import ROW_KEYS

REQUIRED_KEYS = ("iteration", "total_env_steps", "elapsed_s")
"""Keys that must have a number in every row."""
MAX_METRICS_BYTES = 1_000_000_000
"""Half a million iterations."""
_MAX_LINE_BYTES = 100_000
"""Of one row, which has some 2,000: a longer line is damaged, and not read at once."""
_MAX_VALUE = 1e30  # plots and tables cannot handle larger ones


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl``, one for each iteration and in their order.

    Lines that are no rows, as a power loss may leave them, are left out with a warning; so is a
    last line that a killed process left torn, without one. Of two rows of an iteration the later
    one counts. Iterations may be missing: after a power loss the checkpoints, which are synced to
    disk, are intact, but the last lines before them may be lost.

    Raises:
        RunDirError: the file cannot be read.
    """
    try:
        with open_regular(path, max_bytes=MAX_METRICS_BYTES) as file:
            return _read_rows(file, str(path))
    except (OSError, ValueError) as error:  # ValueError: no file can have that name
        raise RunDirError(f"cannot read {path}: {error_reason(error)}") from None


def parse_metrics(content: bytes, name: str) -> list[dict[str, Any]]:
    """Return the rows in the content of a metrics file; ``name`` is for warnings."""
    return _read_rows(io.BytesIO(content), name)


def _read_rows(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    damaged: list[int] = []
    misplaced: list[int] = []
    newest = -1
    for number, line in enumerate(_lines(file), 1):
        row = _parse_row(line)
        if row is None:
            # A last line without its end is being written, or its writer was killed.
            if line.endswith(b"\n") and line.strip():
                damaged.append(number)
            continue
        if row["iteration"] <= newest:
            misplaced.append(number)
        newest = max(newest, row["iteration"])
        rows[row["iteration"]] = row
    if damaged:
        warn_of_damage(f"{_describe(damaged)} of {name} cannot be read and is left out")
    if misplaced:
        warn_of_damage(
            f"{_describe(misplaced)} of {name} is out of order: of each iteration the last row "
            "counts"
        )
    return [rows[iteration] for iteration in sorted(rows)]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; for one that is too long, text that is no row."""
    while line := file.readline(_MAX_LINE_BYTES):
        if len(line) < _MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)
        yield b"too long\n"


def _describe(numbers: list[int]) -> str:
    others = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    return f"line {numbers[0]}{others}"


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """Return the row in a line, or None if there is none or its values cannot be plotted."""
    row: Any = None
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
    if not isinstance(row, dict):
        return None
    is_valid = (
        isinstance(row.get("iteration"), int)
        and all(_is_number(row.get(key), minimum=0.0) for key in REQUIRED_KEYS)
        and all(_is_missing(row.get(key)) or _is_number(row[key]) for key in ROW_KEYS)
    )
    return row if is_valid else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any, minimum: float = -_MAX_VALUE) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and minimum <= value <= _MAX_VALUE
