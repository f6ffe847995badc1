"""Log the metrics of each iteration to ``metrics.jsonl`` and to TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maml_ray.common.errors import RunDirError
from maml_ray.common.safe_files import RetryingFile, write_atomic
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.records import IterationRecord, StartReport
from maml_ray.persistence.run_dir import RunDir

if TYPE_CHECKING:
    from maml_ray.reporting.tensorboard import EventWriter

_TAGS = {
    "return_before": "return/before_adaptation",
    "return_after": "return/after_adaptation",
    "speed_before": "speed/before_adaptation_m_per_s",
    "speed_after": "speed/after_adaptation_m_per_s",
    "loss": "meta/loss",
    "gradient_norm": "meta/gradient_norm",
    "gradient_snr": "meta/gradient_snr",
    "order_cosine": "meta/order_cosine",
    "inner_kl": "meta/inner_kl",
    "query_kl": "meta/query_kl",
    "clip_fraction": "meta/clip_fraction",
    "collector_ratio_error": "meta/collector_ratio_error",
    "entropy": "policy/entropy_nats",
    "gradient_steps": "meta/gradient_steps",
    "learning_rate": "meta/learning_rate",
    "staleness": "meta/staleness",
    "wall_s": "time/iteration_s",
    "collect_s": "time/collect_s",
    "adapt_s": "time/adapt_s",
    "learn_s": "time/learn_s",
    "rest_s": "time/rest_s",
    "total_env_steps": "throughput/total_env_steps",
    "steps_per_second": "throughput/env_steps_per_second",
    "skipped_in_a_row": "faults/updates_skipped_in_a_row",
    "discarded_episodes": "faults/discarded_episodes",
    "actors": "faults/rollout_actors",
    "retried": "faults/work_retried",
    "duplicated": "faults/work_duplicated",
    "discarded": "faults/work_discarded",
    "lost": "faults/work_lost",
    "failures": "faults/failures",
    "learner_restarts": "faults/learner_restarts",
    "checkpoint_age_s": "time/checkpoint_age_s",
}
"""TensorBoard tag of each key of a row that TensorBoard shows."""


class MetricsLog:
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
            is_fetched = not run_dir.tensorboard.exists()
            self._events = EventWriter(run_dir.tensorboard, 0 if is_fetched else first)
        except OSError as error:
            raise RunDirError(
                f"cannot write to the run directory {run_dir.path}: {error.strerror}"
            ) from None
        for row in kept if is_fetched else ():
            self._events.add_scalars(_scalars(row), row["iteration"])

    def on_iteration(self, record: IterationRecord) -> None:
        """Append one line, and one point to every TensorBoard curve."""
        assert self._lines is not None
        assert self._events is not None
        row = record.as_row()
        line = json.dumps({key: _finite_or_none(value) for key, value in row.items()})
        self._lines.append(f"{line}\n".encode())
        self._events.add_scalars(_scalars(row), record.iteration)
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


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    return {tag: row[key] for key, tag in _TAGS.items() if row.get(key) is not None}


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
