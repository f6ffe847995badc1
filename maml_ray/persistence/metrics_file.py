"""Read and validate ``metrics.jsonl``: one JSON object per meta-iteration."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from maml_ray.common.errors import RunDirError
from maml_ray.common.safe_files import UnreadableFile, read_bytes
from maml_ray.persistence.records import ROW_KEYS

REQUIRED_KEYS = ("iteration", "total_env_steps", "elapsed_s")
"""Keys that must have a number in every row."""
_MAX_BYTES = 1_000_000_000
_MAX_VALUE = 1e30  # plots and tables cannot handle larger ones


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl``, without a last line that a killed process left torn.

    Iterations may be missing: after a power loss the checkpoints, which are synced to disk, are
    intact, but the last lines before them may be lost.

    Raises:
        RunDirError: the file cannot be read, another line is not a row, or the iterations are not
            in order.
    """
    try:
        content = read_bytes(path, max_bytes=_MAX_BYTES)
    except UnreadableFile as error:
        raise RunDirError(f"cannot read {path}: {error}") from None
    return parse_metrics(content, str(path))


def parse_metrics(content: bytes, name: str) -> list[dict[str, Any]]:
    """Return the rows in the content of a metrics file; ``name`` is for messages.

    Raises:
        RunDirError: as :func:`read_metrics`.
    """
    rows: list[dict[str, Any]] = []
    lines = content.decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        row = _parse_row(line)
        if row is None:
            if number == len(lines):
                break
            raise RunDirError(f"line {number} of {name} is not a row of metrics")
        if rows and row["iteration"] <= rows[-1]["iteration"]:
            raise RunDirError(
                f"line {number} of {name} has iteration {row['iteration']} out of order"
            )
        rows.append(row)
    return rows


def _parse_row(line: str) -> dict[str, Any] | None:
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
