"""Log the metrics of each iteration to ``metrics.jsonl`` and to TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maml_ray.common.errors import RunDirError
from maml_ray.common.safe_files import RetryingFile, write_atomic
from maml_ray.config.loading import load_settings
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.tensorboard_tags import (
    CUSTOM_CHARTS,
    fault_keys,
    fault_scalars,
    hyperparameters,
    scalars_by_env_steps,
    scalars_by_iteration,
)

if TYPE_CHECKING:
    from maml_ray.reporting.tensorboard import EventWriter


class MetricsLog(Observer):
    """Observer that appends each iteration to ``metrics.jsonl`` and to TensorBoard.

    Args:
        run_dir: run directory.
        first_iteration: first iteration to be logged. Rows of this and later iterations, written
            by an interrupted run, are dropped, so that each iteration is logged once.
    """

    def __init__(self, run_dir: RunDir, first_iteration: int = 0) -> None:
        self._run_dir = run_dir
        self._first_iteration = first_iteration
        self._next_iteration = first_iteration
        self._lines: RetryingFile | None = None
        self._events: EventWriter | None = None
        self._fault_keys: set[str] = set()

    def on_start(self, report: StartReport) -> None:
        """Open the files.

        Raises:
            RunDirError: a file cannot be written, or the existing ``metrics.jsonl`` is damaged
                other than in its last line.
        """
        from maml_ray.reporting.tensorboard import EventWriter  # slow to import

        run_dir, first = self._run_dir, self._first_iteration
        try:
            kept = _truncate(run_dir.metrics, first)
            self._lines = RetryingFile(run_dir.metrics)
            # A run fetched from storage has no event files: they are written again from the rows.
            is_fetched = not any(run_dir.tensorboard.glob("events.*"))
            self._events = EventWriter(run_dir.tensorboard, 0 if is_fetched else first)
        except OSError as error:
            raise RunDirError(
                f"cannot write to the run directory {run_dir.path}: {error.strerror}"
            ) from None
        self._fault_keys = fault_keys(kept)
        if run_dir.settings.exists():
            settings = load_settings(run_dir.settings, recorded=True)
            self._events.add_hyperparameters(hyperparameters(settings))
        self._events.add_custom_charts(CUSTOM_CHARTS)
        self._restore(kept, with_iterations=is_fetched)

    def on_iteration(self, record: IterationRecord) -> None:
        """Append one line, and one point to every TensorBoard curve."""
        assert self._lines is not None
        assert self._events is not None
        row = record.as_row()
        line = json.dumps({key: _finite_or_none(value) for key, value in row.items()})
        self._lines.append(f"{line}\n".encode())
        self._add_row(row)
        self._next_iteration = record.iteration + 1

    def on_event(self, message: str) -> None:
        """Add a line to TensorBoard's text page, at the current iteration."""
        if self._events is not None:
            self._events.add_text("events", message, self._next_iteration)

    def close(self) -> None:
        """Flush and close both files."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()

    def _add_row(self, row: dict[str, Any]) -> None:
        assert self._events is not None
        self._fault_keys |= fault_keys([row])  # a count is shown from its first fault on
        scalars = scalars_by_iteration(row) | fault_scalars(row, self._fault_keys)
        self._events.add_scalars(scalars, row["iteration"])
        self._events.add_scalars(scalars_by_env_steps(row), row["total_env_steps"])

    def _restore(self, rows: Sequence[dict[str, Any]], *, with_iterations: bool) -> None:
        """Write again the points of earlier iterations that TensorBoard hides or does not have.

        The first step of the new file is an iteration, but TensorBoard hides all points from that
        number on, so also most of those by environment steps.
        """
        assert self._events is not None
        end = time.time() - rows[-1]["elapsed_s"] if rows else 0.0
        for row in rows:
            then = end + row["elapsed_s"]
            if with_iterations:
                scalars = scalars_by_iteration(row) | fault_scalars(row, self._fault_keys)
                self._events.add_scalars(scalars, row["iteration"], then)
            if with_iterations or row["total_env_steps"] >= self._first_iteration:
                self._events.add_scalars(scalars_by_env_steps(row), row["total_env_steps"], then)


def _truncate(path: Path, first_iteration: int) -> list[dict[str, Any]]:
    """Drop ``first_iteration`` and later ones from the file, atomically.

    Returns:
        The remaining rows.
    """
    if not path.exists():
        return []
    kept = [row for row in read_metrics(path) if row["iteration"] < first_iteration]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def _finite_or_none(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
