"""Plot a run: returns, statistics of the meta-update, wall time, evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Rows = Sequence[Mapping[str, Any]]
# Color-blind people can distinguish the colors of Okabe and Ito.
_BEFORE, _AFTER, _OTHER, _GRAY = "#D55E00", "#0072B2", "#009E73", "#888888"
COLORS = (_AFTER, _BEFORE, _OTHER, "#CC79A7", "#56B4E9", "#E69F00", _GRAY)
INK, GRID = "#1c2430", "#d9dee5"
"""Colors of text and axes, and of grid lines."""
_SIZE = (5.0, 3.3)  # inches: text of 9 points stays readable where a telephone is 390 pixels wide
_FONT_SIZE = 9
_DPI = 150
_MARKER_LIMIT = 5  # up to so many points are marked: a line through one point is invisible
_MAX_BARS = 10
_MIN_CURVE_TASKS = 5
_UNITS = {"speed": "m/s"}
"""Units of task parameters, by their key."""
_RETURN = "mean return of an episode"


def run_figures(rows: Rows) -> dict[str, Figure]:
    """Return the plots of a run's training by name; none without ``rows`` of metrics."""
    if not rows:
        return {}
    return {
        "returns": returns_figure(rows),
        "returns_by_time": returns_figure(rows, by="time"),
        "loss": iteration_figure(rows, "Meta-loss", "meta-loss", {"loss": ""}),
        "kl": iteration_figure(
            rows,
            "Change of the policy by an update",
            "KL divergence (nats)",
            {"inner_kl": "on support data", "query_kl": "on query data"},
        ),
        "entropy": iteration_figure(
            rows, "Entropy of the adapted policies", "entropy (nats)", {"entropy": ""}
        ),
        "gradient_norm": iteration_figure(
            rows, "Size of the meta-gradient", "Euclidean norm", {"gradient_norm": ""}
        ),
        "gradient_snr": iteration_figure(
            rows,
            "Signal to noise of the meta-gradient",
            "ratio of signal to noise, over tasks",
            {"gradient_snr": ""},
        ),
        "order_cosine": iteration_figure(
            rows,
            "Second- against first-order meta-gradient",
            "cosine of the angle between them",
            {"order_cosine": ""},
        ),
        "time": time_figure(rows),
    }


def evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the plots of an evaluation by name.

    Args:
        evaluation: content of ``evaluation.json``.
    """
    figures = {"evaluation": evaluation_figure(evaluation)}
    tasks = tasks_figure(evaluation)
    return figures if tasks is None else figures | {"tasks": tasks}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically as PNG; a link at ``path`` is replaced, not followed.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        figure.savefig(temporary, dpi=_DPI)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def returns_figure(rows: Rows, *, by: str = "steps") -> Figure:
    """Plot return before and after adaptation over environment steps, or by ``"time"``."""
    positions, label = x_axis(rows, by)
    title = "training time" if by == "time" else "environment steps"
    figure, axes = new_figure(f"Return against {title}", label, _RETURN)
    curves = (
        ("return_before", "before adaptation", _BEFORE),
        ("return_after", "after adaptation", _AFTER),
    )
    for key, name, color in curves:
        values = column(rows, key)
        axes.plot(positions, values, color=color, alpha=0.3, linewidth=1)
        axes.plot(
            positions, smooth(values), color=color, linewidth=2, label=name, marker=_marker(rows)
        )
    style_legend(axes)
    return figure


def iteration_figure(rows: Rows, title: str, ylabel: str, keys: Mapping[str, str]) -> Figure:
    """Plot metrics over iterations.

    Args:
        rows: rows of ``metrics.jsonl``.
        title: title of the plot.
        ylabel: label of the vertical axis, with its unit.
        keys: label of each curve by its key in ``rows``.
    """
    figure, axes = new_figure(title, "iteration", ylabel)
    iterations = column(rows, "iteration")
    colors = (_AFTER,) if len(keys) == 1 else (_BEFORE, _AFTER)
    for (key, label), color in zip(keys.items(), colors, strict=True):
        values = column(rows, key)
        is_known = np.isfinite(values)  # some diagnostics are not computed in every iteration
        axes.plot(
            iterations[is_known],
            values[is_known],
            color=color,
            linewidth=1.4,
            label=label,
            marker=_marker(values[is_known]),
        )
    if len(keys) > 1:
        style_legend(axes)
    margin = max(0.5, 0.04 * float(np.ptp(iterations)))
    axes.set_xlim(iterations[0] - margin, iterations[-1] + margin)
    _use_integers(axes)
    return figure


def time_figure(rows: Rows) -> Figure:
    """Plot the share of each phase in an iteration's wall time, in percent."""
    figure, axes = new_figure("Where the time went", "iteration", "share of wall time (%)")
    keys = ("collect_s", "adapt_s", "learn_s", "rest_s")
    seconds = np.stack([column(rows, key) for key in keys])
    shares = 100.0 * seconds / np.maximum(seconds.sum(axis=0), 1e-9)
    iterations = column(rows, "iteration")
    # Iteration i spans i to i + 1, so that a single iteration is visible.
    axes.stackplot(
        np.append(iterations, iterations[-1] + 1),
        np.hstack([shares, shares[:, -1:]]),
        labels=[key.removesuffix("_s") for key in keys],
        colors=[_AFTER, _OTHER, _BEFORE, _GRAY],
        step="post",
    )
    _use_integers(axes)
    axes.set_ylim(0, 100)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def evaluation_figure(evaluation: Mapping[str, Any]) -> Figure:
    """Plot return over adaptation steps, with 95% intervals, of the policy and baselines."""
    figure, axes = new_figure("Return by adaptation steps", "adaptation steps", _RETURN)
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
    _use_integers(axes)
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


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Return a centered moving mean of the finite values; the window narrows at the ends.

    It is at most about a third of the values, so that a short run does not look flat.
    """
    half = min(window // 2, len(values) // 6)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """Return the values (n,) of a key in all rows, NaN if missing."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


X_AXES = ("steps", "time", "iterations")
"""What curves can be drawn against."""


def x_axis(rows: Rows, by: str, end: float | None = None) -> tuple[NDArray[np.float64], str]:
    """Return the position (n,) of each row on the horizontal axis, and the label of the axis.

    Args:
        rows: rows of ``metrics.jsonl``.
        by: one of :data:`X_AXES`.
        end: value that decides the unit: environment steps or seconds; by default the last one.
    """
    if by == "iterations":
        return column(rows, "iteration") + 1, "finished iterations"
    values = column(rows, "total_env_steps" if by == "steps" else "elapsed_s")
    end = float(values[-1]) if end is None else end
    if by == "steps":
        scale, unit = (1e6, "million") if end >= 1e6 else (1e3, "thousand")
        return values / scale, f"environment steps ({unit})"
    scale, unit = (3600.0, "hours") if end >= 7200.0 else (60.0, "minutes")
    scale, unit = (scale, unit) if end >= 120.0 else (1.0, "seconds")
    return values / scale, f"training time ({unit})"


def new_figure(
    title: str, xlabel: str, ylabel: str, size: tuple[float, float] = _SIZE
) -> tuple[Figure, Axes]:
    """Return a figure in the style of all plots, with its axes.

    Args:
        title: title of the plot.
        xlabel, ylabel: labels of the axes, with their units.
        size: width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=_FONT_SIZE + 1.5, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=_FONT_SIZE, color=INK)
    axes.set_ylabel(ylabel, fontsize=_FONT_SIZE, color=INK)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Hide the upper and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=_FONT_SIZE)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def style_legend(axes: Axes, **keywords: Any) -> None:
    """Add a legend without a frame."""
    legend = axes.legend(frameon=False, fontsize=_FONT_SIZE, labelcolor=INK, **keywords)
    legend.get_title().set(color=INK, fontsize=_FONT_SIZE)


def literal(text: str, max_length: int = 40) -> str:
    """Return text that Matplotlib does not read as mathematics, shortened."""
    shown = text if len(text) <= max_length else f"{text[: max_length - 3]}..."
    return shown.replace("$", r"\$")


_Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Rows of each task, before and after adaptation."""


def _task_curve(key: str, positions: Sequence[float], pairs: _Pairs, label: str) -> Figure:
    """Plot return over the tasks' one parameter, named ``key``."""
    unit = f" ({_UNITS[key]})" if key in _UNITS else ""
    figure, axes = new_figure("Return by task", literal(f"{key} of the task{unit}"), _RETURN)
    order = np.argsort(positions)
    for number, name, color in ((0, "before", _BEFORE), (1, label, _AFTER)):
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
    height = max(_SIZE[1], 1.1 + 0.38 * len(pairs))
    figure, axes = new_figure("Return by task", _RETURN, "task", (_SIZE[0], height))
    pairs = sorted(pairs, key=lambda pair: str(pair[0]["task"]))
    positions = np.arange(len(pairs))
    for number, name, color in ((0, "before", _BEFORE), (1, label, _AFTER)):
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
    axes.scatter(x, y, s=18, color=_AFTER, alpha=0.8, label="one task")
    finite = [value for value in (*x, *y) if np.isfinite(value)]
    if finite:
        ends = [min(finite), max(finite)]
        axes.plot(ends, ends, color=_GRAY, linestyle="--", linewidth=1.2, label="no change")
    style_legend(axes)
    return figure


def _errors(rows: Rows) -> NDArray[np.float64]:
    """Return distances (2, n) from the mean to the ends of the interval, NaN if there is none."""
    means = np.array([row["mean"] for row in rows], dtype=np.float64)
    ends = np.array([[row[end] for row in rows] for end in ("low", "high")], dtype=np.float64)
    distances: NDArray[np.float64] = np.abs(ends - means)
    return distances


def _marker(points: Sized) -> str | None:
    return "o" if len(points) <= _MARKER_LIMIT else None


def _use_integers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
