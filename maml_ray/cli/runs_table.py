"""Format the runs on a cluster as a table of at most 80 columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from maml_ray.reporting.progress_text import format_duration

if TYPE_CHECKING:
    from maml_ray.monitoring.registry import RunEntry
    from maml_ray.monitoring.status_actor import RunStatus

_COLUMNS = ("iteration", "before", "after", "steps/s", "actors", "saved", "since")


def runs_table(runs: Sequence[RunEntry]) -> RenderableType:
    """Return a table with one line per run, and a message per run without a status."""
    if not runs:
        return Text("no run is training on this cluster")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold", min_width=12)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    name_counts = Counter(run.run_id.run for run in runs)
    problems = []
    for run in runs:
        label = str(run.run_id) if name_counts[run.run_id.run] > 1 else run.run_id.run
        if run.status is not None:
            table.add_row(escape(label), *_cells(run.status, run.status_age_s))
        else:
            problems.append(Text(f"{label}: {run.problem}"))
    return Group(*([table] if table.row_count else []), *problems)


def _cells(status: RunStatus, status_age_s: float) -> list[str]:
    age = status.checkpoint_age_s
    return [
        f"{status.iteration}/{status.iterations}",
        _format_number(status.return_before, ".1f"),
        _format_number(status.return_after, ".1f"),
        _format_number(status.steps_per_second, ",.0f"),
        str(status.actors),
        "" if age is None else f"{format_duration(age + status_age_s)} ago",
        _since(status.began_at),
    ]


def _since(started_at: float) -> str:
    """Return the time of day, or the date if it is not today."""
    started, today = time.localtime(started_at), time.localtime()
    same_day = started[:3] == today[:3]
    return time.strftime("%H:%M" if same_day else "%d %b", started)


def _format_number(value: float | None, format_spec: str) -> str:
    return "" if value is None else f"{value:{format_spec}}"
