"""Print results as tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maml_ray.evaluation.intervals import format_interval

_MAX_TASKS = 6  # more would scroll the overall results away; report and CSV contain all tasks


def print_evaluation(console: Console, results: Mapping[str, Any]) -> None:
    """Print ``evaluation.json``: the policy, its baselines and, if there are few, the tasks."""
    baselines = results["beside"]
    infos = tuple(results["rows"][0].get("infos", ()))
    table = _table(
        f"Return: {results['tasks']} tasks x {results['episodes']} episodes",
        "policy" if baselines else None,
        infos,
    )
    for name, rows in {"meta-trained": results["rows"], **baselines}.items():
        _add_rows(table, rows, lambda row, name=name: name if baselines else None, infos)
    console.print(table)
    for gain in results.get("gains", ()):
        if gain["actions"] == "stochastic":
            ends = format_interval(gain["low"], gain["high"])
            print_line(console, f"gain {_after(gain['steps'])}: {gain['mean']:+.1f} ({ends})")
    tasks = {row["task"] for row in results["rows_by_task"]}
    if 1 < len(tasks) <= _MAX_TASKS:
        table = _table("By task", "task", infos)
        ordered = sorted(results["rows_by_task"], key=lambda row: str(row["task"]))
        _add_rows(table, ordered, lambda row: str(row["task"]), infos)
        console.print(table)


def print_comparison(console: Console, summaries: Sequence[Any]) -> None:
    """Print a block of lines per group of runs (:class:`..reporting.comparison.Summary`)."""
    with_range = any(summary.seeds > 1 for summary in summaries)
    with_speed = any(summary.speeds for summary in summaries)
    columns = {"mean return": 11, "95% interval": 16, "IQM": 7}
    columns |= {"range of seeds": 16} if with_range else {}
    columns |= {"m/s": 5} if with_speed else {}
    for summary in summaries:
        # A line of its own: in a column, a long name would be cut or folded into many lines.
        console.print(f"\n[bold]{escape(summary.label)}[/bold]", highlight=False)
        console.print(_describe_runs(summary), style="dim", highlight=False)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("adaptation", min_width=13, no_wrap=True)
        for column, width in columns.items():
            table.add_column(column, justify="right", no_wrap=True, min_width=width)
        for step, values in summary.returns.items():
            cells = [_after(step), _number(values.mean), _interval(values.interval)]
            cells.append(_number(values.interquartile_mean))
            if with_range:
                ends = (values.lowest, values.highest)
                cells.append(_interval(ends) if summary.seeds > 1 else "")
            if with_speed:
                cells.append(f"{summary.speeds[step]:.2f}" if step in summary.speeds else "")
            table.add_row(*cells)
        console.print(table)
    console.print(
        "\n95% interval of the mean: over seeds; of a single seed, over the adaptations of its "
        "evaluation. IQM: interquartile mean over tasks and seeds.",
        style="dim",
    )


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print messages for the user."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False)


def print_line(console: Console, text: object) -> None:
    """Print ``text`` unwrapped and without markup, so that it can be copied or parsed."""
    console.print(str(text), soft_wrap=True, highlight=False, markup=False)


def _table(title: str, first: str | None, infos: Sequence[str]) -> Table:
    table = Table(title=title)
    if first is not None:
        table.add_column(first)
    for column in ("steps", "actions", "mean", "95% interval", "m/s", *map(escape, infos)):
        # At 80 columns names are cut, never numbers.
        table.add_column(column, justify="left" if column == "actions" else "right", no_wrap=True)
    return table


def _add_rows(
    table: Table, rows: Sequence[Mapping[str, Any]], first: Any, infos: Sequence[str]
) -> None:
    for row in rows:
        head = first(row)
        speed = row["speed"]
        table.add_row(
            *([] if head is None else [escape(head)]),
            f"{row['steps']}",
            row["actions"],
            f"{row['mean']:.1f}",
            format_interval(row["low"], row["high"]),
            "" if speed is None else f"{speed:.2f}",
            *("" if value is None else f"{value:.3g}" for value in _infos_of(row, infos)),
        )


def _infos_of(row: Mapping[str, Any], names: Sequence[str]) -> list[float | None]:
    return [row.get("infos", {}).get(name) for name in names]


def _after(steps: int) -> str:
    return "before" if steps == 0 else f"after {steps} step{'' if steps == 1 else 's'}"


def _describe_runs(summary: Any) -> str:
    million = summary.env_steps / 1e6
    return (
        f"{summary.seeds} seed{'' if summary.seeds == 1 else 's'}, {million:.2g} M env steps, "
        f"{summary.minutes:.1f} minutes, {'evaluated' if summary.evaluated else 'in training'}"
    )


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.1f}"
