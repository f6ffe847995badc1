"""Print results as tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_MAX_TASKS = 6  # more would scroll the overall results away; report and CSV contain all tasks


def print_evaluation(console: Console, results: Mapping[str, Any]) -> None:
    """Print ``evaluation.json``: the policy, its baselines and, if there are few, the tasks."""
    baselines = results["beside"]
    table = _table(
        f"Return: {results['tasks']} tasks x {results['episodes']} episodes",
        "policy" if baselines else None,
    )
    for name, rows in {"meta-trained": results["rows"], **baselines}.items():
        _add_rows(table, rows, lambda row, name=name: name if baselines else None)
    console.print(table)
    tasks = {row["task"] for row in results["rows_by_task"]}
    if 1 < len(tasks) <= _MAX_TASKS:
        table = _table("By task", "task")
        ordered = sorted(results["rows_by_task"], key=lambda row: str(row["task"]))
        _add_rows(table, ordered, lambda row: str(row["task"]))
        console.print(table)


def print_comparison(console: Console, summaries: Sequence[Any]) -> None:
    """Print one line per group of runs (:class:`maml_ray.reporting.comparison.Summary`)."""
    steps = sorted({step for summary in summaries for step in summary.returns})
    table = Table(title="Mean return (mean speed in m/s), lowest to highest seed")
    table.add_column("runs")
    for column in ("seeds", "env steps", "minutes", *(_after(step) for step in steps), "measured"):
        table.add_column(column, justify="right")
    for summary in summaries:
        cells = [_return(summary, step) for step in steps]
        table.add_row(
            escape(summary.label),
            f"{summary.seeds}",
            f"{summary.env_steps / 1e6:.1f} M",
            f"{summary.minutes:.1f}",
            *cells,
            "evaluated" if summary.evaluated else "in training",
        )
    console.print(table)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print messages for the user."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False)


def print_line(console: Console, text: object) -> None:
    """Print ``text`` unwrapped and without markup, so that it can be copied or parsed."""
    console.print(str(text), soft_wrap=True, highlight=False, markup=False)


def _table(title: str, first: str | None) -> Table:
    table = Table(title=title)
    if first is not None:
        table.add_column(first)
    for column in ("steps", "actions", "mean", "95% interval", "m/s"):
        # At 80 columns names are cut, never numbers.
        table.add_column(column, justify="left" if column == "actions" else "right", no_wrap=True)
    return table


def _add_rows(table: Table, rows: Sequence[Mapping[str, Any]], first: Any) -> None:
    for row in rows:
        head = first(row)
        speed = row["speed"]
        table.add_row(
            *([] if head is None else [escape(head)]),
            f"{row['steps']}",
            row["actions"],
            f"{row['mean']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            "" if speed is None else f"{speed:.2f}",
        )


def _after(steps: int) -> str:
    return "before" if steps == 0 else f"after {steps}"


def _return(summary: Any, step: int) -> str:
    if step not in summary.returns:
        return ""
    mean, low, high = summary.returns[step]
    speed = f" ({summary.speeds[step]:.2f})" if step in summary.speeds else ""
    return f"{mean:.0f}{speed}" + (f", {low:.0f} to {high:.0f}" if summary.seeds > 1 else "")
