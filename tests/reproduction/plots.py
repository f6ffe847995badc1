"""Plot finished runs with published results: learning curves, gradient steps, tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from maml_ray.reporting.comparison import mean_curves
from maml_ray.reporting.plots.style import COLORS, INK, literal, new_figure
from tests.reproduction.measurements import Result, Returns
from tests.reproduction.published_results import PublishedCurve, PublishedReturns

By = Literal["steps", "time"]
_SIZE = (6.4, 4.4)  # inches
_PUBLISHED_COLOR = "#555555"
_PUBLISHED_STYLES = ("-", (0, (1, 1)), (0, (4, 2, 1, 2)))
"""Line styles of published results, all in one color: colors are for ours."""
_LOGARITHMIC_FROM = 5.0
"""A logarithmic axis, if the longest curve is so many times as long as the shortest."""
_AXES: Mapping[By, tuple[str, float]] = {
    "steps": ("environment steps (million)", 1e6),
    "time": ("training time (minutes)", 3600.0),
}
"""Label of the axis, and the end that makes :func:`mean_curves` choose its unit."""
_RETURN = "mean return of an episode"
_FORWARD_BACKWARD = ("-", "--")


def returns_figure(
    results: Sequence[Result],
    curves: Sequence[PublishedCurve],
    returns: Sequence[PublishedReturns],
    title: str,
    by: By,
) -> Figure:
    """Plot returns in training together with published ones.

    Ours after adaptation are solid and before it dashed, with the range over seeds as a band.
    Next to a published curve, which is of few episodes and mean actions, a star at the end of
    training shows ours under the same conditions. Published returns of which there is no curve
    are horizontal lines, with a mark where training ended if that is known.

    Args:
        results: finished runs, one color each.
        curves, returns: published results.
        title: title of the plot.
        by: against environment steps or training time.
    """
    label, end = _AXES[by]
    figure, axes = new_figure(title, label, _RETURN, _SIZE)
    logarithmic = _is_logarithmic([*_ends(results, by), *_published_ends(curves, returns, by)])
    for index, result in enumerate(results):
        color = COLORS[index % len(COLORS)]
        _plot_result(axes, result, color, by, end, logarithmic)
        few_episodes = result.returns_of(None, "mean").few_episodes
        if curves and few_episodes is not None:
            axes.plot(_end(result, by), few_episodes.mean, color=color, marker="*", markersize=9)
    for curve in curves:
        steps, minutes, values = curve.points()
        positions = steps / 1e6 if by == "steps" else minutes
        shown = positions > 0.0
        axes.plot(
            positions[shown],
            values[shown],
            color=_PUBLISHED_COLOR,
            linewidth=1.2,
            label=literal(curve.label),
        )
    _plot_published_returns(axes, returns, by)
    if logarithmic:
        _use_logarithmic(axes)
    _legend_below(figure, axes)
    return figure


def gradient_steps_figure(
    results: Sequence[Result], returns: Sequence[PublishedReturns], title: str
) -> Figure:
    """Plot return against gradient steps: mean over seeds, bars from lowest to highest seed."""
    figure, axes = new_figure(title, "gradient steps", _RETURN, _SIZE)
    for index, result in enumerate(results):
        by_steps = result.returns_of(None, "stochastic").by_steps
        color = COLORS[index % len(COLORS)]
        _plot_by_steps(axes, by_steps, color, literal(result.name), "-")
    for published, style in _with_styles(returns):
        if len(published.returns) == 1:
            _plot_level(axes, published, style)
            continue
        axes.plot(
            range(len(published.returns)),
            published.returns,
            color=_PUBLISHED_COLOR,
            linestyle=style,
            marker="s",
            markersize=4,
            label=literal(published.label),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(figure, axes)
    return figure


def directions_figure(results: Sequence[Result], title: str) -> Figure | None:
    """Plot return against gradient steps for each of two tasks: first solid, second dashed.

    Returns:
        None if no result has two tasks.
    """
    named = [result for result in results if result.named_tasks]
    if not named:
        return None
    figure, axes = new_figure(title, "gradient steps", _RETURN, _SIZE)
    for index, result in enumerate(named):
        for task, style in zip(result.named_tasks, _FORWARD_BACKWARD, strict=True):
            _plot_by_steps(
                axes,
                result.returns_of(task, "stochastic").by_steps,
                COLORS[index % len(COLORS)],
                literal(f"{result.name}, {task}", max_length=60),
                style,
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(figure, axes)
    return figure


def speeds_figure(results: Sequence[Result], title: str) -> Figure | None:
    """Plot the return of each held-out task over its target speed, one point per seed and task.

    Before adaptation the points are hollow, after one step filled.

    Returns:
        None if no result has tasks of different speeds.
    """
    points = [(result, found) for result in results if (found := _returns_by_speed(result))]
    if not points:
        return None
    figure, axes = new_figure(title, "target speed (m/s)", _RETURN, _SIZE)
    for index, (result, by_steps) in enumerate(points):
        color = COLORS[index % len(COLORS)]
        for steps, face, when in ((0, "none", "before"), (1, color, "after 1 step")):
            speeds, values = zip(*by_steps.get(steps, [(np.nan, np.nan)]), strict=True)
            axes.scatter(
                speeds,
                values,
                s=14,
                facecolors=face,
                edgecolors=color,
                linewidths=0.8,
                alpha=0.8,
                label=literal(f"{result.name}, {when}", max_length=60),
            )
    _legend_below(figure, axes)
    return figure


def _plot_result(
    axes: Axes, result: Result, color: str, by: By, end: float, logarithmic: bool
) -> None:
    positions, after = mean_curves(result.group, "return_after", by, end, logarithmic=logarithmic)
    axes.plot(positions, after.mean(axis=0), color=color, linewidth=2, label=literal(result.name))
    if len(result.runs) > 1:
        axes.fill_between(
            positions, after.min(axis=0), after.max(axis=0), color=color, alpha=0.2, linewidth=0
        )
    if any(run.settings.inner.steps for run in result.runs):
        _, before = mean_curves(result.group, "return_before", by, end, logarithmic=logarithmic)
        axes.plot(positions, before.mean(axis=0), color=color, linewidth=1.2, linestyle="--")


def _plot_published_returns(axes: Axes, returns: Sequence[PublishedReturns], by: By) -> None:
    for published, style in _with_styles(returns):
        _plot_level(axes, published, style)
        position = published.env_steps if by == "steps" else published.minutes
        if position is not None:
            scale = 1e6 if by == "steps" else 1.0
            value = published.after_one_step
            axes.plot(position / scale, value, color=_PUBLISHED_COLOR, marker="s", markersize=5)


def _plot_level(axes: Axes, published: PublishedReturns, style: Any) -> None:
    axes.axhline(
        published.after_one_step,
        color=_PUBLISHED_COLOR,
        linewidth=1,
        linestyle=style,
        label=literal(published.label),
    )


def _plot_by_steps(
    axes: Axes, by_steps: Mapping[int, Returns], color: str, label: str, style: str
) -> None:
    means = np.array([values.mean for values in by_steps.values()])
    ends = np.array([(values.lowest, values.highest) for values in by_steps.values()]).T
    axes.errorbar(
        list(by_steps),
        means,
        yerr=np.abs(ends - means),
        label=label,
        color=color,
        linestyle=style,
        marker="o",
        markersize=4,
        capsize=4,
    )


def _returns_by_speed(result: Result) -> dict[int, list[tuple[float, float]]]:
    """Return (target speed, return) of each seed and task, by number of steps; empty if none."""
    points: dict[int, list[tuple[float, float]]] = {}
    for evaluation in result.evaluations:
        for row in evaluation["rows_by_task"]:
            parameters = evaluation["task_parameters"].get(row["task"], {})
            if row["actions"] == "stochastic" and "speed" in parameters:
                points.setdefault(row["steps"], []).append((parameters["speed"], row["mean"]))
    return points


def _with_styles(returns: Sequence[PublishedReturns]) -> list[tuple[PublishedReturns, Any]]:
    styles = _PUBLISHED_STYLES[1:]
    return [(each, styles[index % len(styles)]) for index, each in enumerate(returns)]


def _ends(results: Sequence[Result], by: By) -> list[float]:
    return [_end(result, by) for result in results]


def _end(result: Result, by: By) -> float:
    return result.env_steps / 1e6 if by == "steps" else result.minutes


def _published_ends(
    curves: Sequence[PublishedCurve], returns: Sequence[PublishedReturns], by: By
) -> list[float]:
    if by == "steps":
        known = [each.env_steps / 1e6 for each in returns if each.env_steps is not None]
        return known + [float(curve.points()[0][-1]) / 1e6 for curve in curves]
    known = [each.minutes for each in returns if each.minutes is not None]
    return known + [float(curve.points()[1][-1]) for curve in curves]


def _is_logarithmic(ends: Sequence[float]) -> bool:
    return min(ends) > 0.0 and max(ends) / min(ends) >= _LOGARITHMIC_FROM


def _use_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Add a legend below the axes, where it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
