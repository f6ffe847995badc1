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
"""Keys of which every row has a number."""
_MOST_BYTES = 1_000_000_000
_MOST = 1e30


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; a last line torn by a killed program is left out.

    Iterations may be missing: a machine that loses power keeps its checkpoints, which are synced
    to disk, and may lose the last lines before them.

    Raises:
        RunDirError: the file cannot be read, another line is not a row, or an iteration is told
            out of order.
    """
    try:
        content = read_bytes(path, max_bytes=_MOST_BYTES)
    except UnreadableFile as error:
        raise RunDirError(f"cannot read {path}: {error}") from None
    return parse_metrics(content, str(path))


def parse_metrics(content: bytes, path: str) -> list[dict[str, Any]]:
    """The rows in what a file of metrics holds; ``path`` is for the sentence.

    Raises:
        RunDirError: as above.
    """
    rows: list[dict[str, Any]] = []
    lines = content.decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            if number == len(lines):
                break
            raise RunDirError(f"line {number} of {path} is not a row of metrics")
        if rows and row["iteration"] <= rows[-1]["iteration"]:
            raise RunDirError(
                f"line {number} of {path} tells iteration {row['iteration']} out of order"
            )
        rows.append(row)
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """A row whose figures can be drawn, or None if the line is none."""
    row: Any = None
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
    if not isinstance(row, dict):
        return None
    iteration = row.get("iteration")
    counts = isinstance(iteration, int) and not isinstance(iteration, bool)
    told = all(_drawable(row.get(key)) for key in REQUIRED_KEYS)
    others = all(_missing(row.get(key)) or _drawable(row[key], -_MOST) for key in ROW_KEYS)
    return row if counts and told and others else None


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _drawable(value: Any, least: float = 0.0) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= _MOST
