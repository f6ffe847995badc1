"""Plot an evaluation: returns over adaptation steps, and by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from maml_ray.reporting.plots.style import (
    AFTER,
    BEFORE,
    COLORS,
    GRAY,
    INK,
    RETURN,
    SIZE,
    Rows,
    literal,
    new_figure,
    style_legend,
    use_integers,
)

_MAX_BARS = 10
_MIN_CURVE_TASKS = 5
_UNITS = {"speed": "m/s"}
"""Units of task parameters, by their key."""


def evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the plots of an evaluation by name.

    Args:
        evaluation: content of ``evaluation.json``.
    """
    figures = {"evaluation": evaluation_figure(evaluation)}
    tasks = tasks_figure(evaluation)
    return figures if tasks is None else figures | {"tasks": tasks}


def evaluation_figure(evaluation: Mapping[str, Any]) -> Figure:
    """Plot return over adaptation steps, with 95% intervals, of the policy and baselines."""
    figure, axes = new_figure("Return by adaptation steps", "adaptation steps", RETURN)
    policies = {"meta-trained": evaluation["rows"], **evaluation.get("beside", {})}
    for index, (name, rows) in enumerate(policies.items()):
        stochastic = [row for row in rows if row["actions"] == "stochastic"]
        axes.errorbar(
            [row["steps"] for row in stochastic],
            [row["mean"] for row in stochastic],
            yerr=_errors(stochastic),
            label=literal(name),
            color=COLORS[index % len(COLORS)],
            marker="o",
            capsize=4,
            linewidth=2,
        )
    use_integers(axes)
    style_legend(axes, title="mean, 95% interval")
    return figure


def tasks_figure(evaluation: Mapping[str, Any]) -> Figure | None:
    """Plot the return of each task before and after adaptation.

    A curve over the parameter if tasks have one and there are several; bars for up to ten tasks;
    otherwise one point per task.

    Args:
        evaluation: content of ``evaluation.json``.

    Returns:
        None if there are not two tasks or more.
    """
    rows = [row for row in evaluation.get("rows_by_task", ()) if row["actions"] == "stochastic"]
    last = max((row["steps"] for row in rows), default=0)
    before = {row["task"]: row for row in rows if row["steps"] == 0}
    after = {row["task"]: row for row in rows if row["steps"] == last}
    tasks = [task for task in before if task in after]
    if len(tasks) < 2:
        return None
    pairs = [(before[task], after[task]) for task in tasks]
    label = f"after {last} step{'' if last == 1 else 's'}"
    parameters = evaluation.get("task_parameters", {})
    keys = {key for task in tasks for key in parameters.get(task, {"": 0.0})}
    if len(keys) == 1 and keys != {""} and len(tasks) >= _MIN_CURVE_TASKS:
        key = keys.pop()
        positions = [parameters[task].get(key, np.nan) for task in tasks]
        if not any(isinstance(position, str) for position in positions):
            return _task_curve(key, positions, pairs, label)
    return (_task_bars if len(tasks) <= _MAX_BARS else _task_scatter)(pairs, label)


_Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Rows of each task, before and after adaptation."""


def _task_curve(key: str, positions: Sequence[float], pairs: _Pairs, label: str) -> Figure:
    """Plot return over the tasks' one parameter, named ``key``."""
    unit = f" ({_UNITS[key]})" if key in _UNITS else ""
    figure, axes = new_figure("Return by task", literal(f"{key} of the task{unit}"), RETURN)
    order = np.argsort(positions)
    for number, name, color in ((0, "before", BEFORE), (1, label, AFTER)):
        rows = [pairs[index][number] for index in order]
        axes.errorbar(
            np.asarray(positions)[order],
            [row["mean"] for row in rows],
            yerr=_errors(rows),
            label=name,
            color=color,
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.5,
        )
    style_legend(axes)
    return figure


def _task_bars(pairs: _Pairs, label: str) -> Figure:
    """Plot a pair of horizontal bars per task."""
    height = max(SIZE[1], 1.1 + 0.38 * len(pairs))
    figure, axes = new_figure("Return by task", RETURN, "task", (SIZE[0], height))
    pairs = sorted(pairs, key=lambda pair: str(pair[0]["task"]))
    positions = np.arange(len(pairs))
    for number, name, color in ((0, "before", BEFORE), (1, label, AFTER)):
        rows = [pair[number] for pair in pairs]
        axes.barh(
            positions + (0.2 if number else -0.2),
            [row["mean"] for row in rows],
            height=0.36,
            xerr=_errors(rows),
            label=name,
            color=color,
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
        )
    axes.set_yticks(positions, [literal(pair[0]["task"], 24) for pair in pairs])
    axes.invert_yaxis()
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    style_legend(axes, loc="upper left", bbox_to_anchor=(0.0, -0.2), ncols=2)
    return figure


def _task_scatter(pairs: _Pairs, label: str) -> Figure:
    """Plot return after over return before adaptation, one point per task."""
    figure, axes = new_figure(
        f"Return by task: {len(pairs)} tasks",
        "mean return before adaptation",
        f"mean return {label}",
    )
    x, y = ([pair[number]["mean"] for pair in pairs] for number in (0, 1))
    axes.scatter(x, y, s=18, color=AFTER, alpha=0.8, label="one task")
    finite = [value for value in (*x, *y) if np.isfinite(value)]
    if finite:
        ends = [min(finite), max(finite)]
        axes.plot(ends, ends, color=GRAY, linestyle="--", linewidth=1.2, label="no change")
    style_legend(axes)
    return figure


def _errors(rows: Rows) -> NDArray[np.float64]:
    """Return distances (2, n) from the mean to the ends of the interval, NaN if there is none."""
    means = np.array([row["mean"] for row in rows], dtype=np.float64)
    ends = np.array([[row[end] for row in rows] for end in ("low", "high")], dtype=np.float64)
    distances: NDArray[np.float64] = np.abs(ends - means)
    return distances
