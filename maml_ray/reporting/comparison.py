"""Compare groups of runs in one plot and one table.

The statistics are those that Agarwal et al. recommend for few seeds ("Deep reinforcement learning
at the edge of the statistical precipice", 2021), the interquartile mean and intervals over seeds,
except that the intervals are Student's: a bootstrap of three seeds is too narrow.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from maml_ray.common.errors import RunDirError
from maml_ray.evaluation.intervals import Interval, mean_interval
from maml_ray.reporting.plots.style import COLORS, literal, new_figure, save_figure, style_legend
from maml_ray.reporting.plots.training import column, smooth, x_axis
from maml_ray.reporting.run_groups import Group, Run

_CURVE_POINTS = 200
_COLUMNS = (
    "runs",
    "seeds",
    "env_steps",
    "minutes",
    "evaluated",
    "adaptation_steps",
    "mean_return",
    "interval_low",
    "interval_high",
    "interval_over",
    "interquartile_mean",
    "lowest_seed",
    "highest_seed",
    "mean_speed",
)


@dataclass(frozen=True)
class ReturnStatistics:
    """Statistics of a group's returns after some number of adaptation steps.

    Attributes:
        mean: mean over seeds of the mean return.
        interval: 95% confidence interval (low, high) of the mean; None of a single seed that was
            not evaluated or adapted once.
        interval_over: what varies: the seed if there are several, else the task and the support
            set of the only seed's evaluation.
        interquartile_mean: mean of the middle half of the returns of all seeds and tasks.
        lowest, highest: mean return of the worst and of the best seed.
    """

    mean: float
    interval: Interval | None
    interval_over: Literal["seeds", "tasks"] | None
    interquartile_mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Summary:
    """Statistics of a group, one row of the comparison table.

    Attributes:
        label: label of the group.
        seeds: number of runs.
        env_steps: environment steps of training, mean over seeds.
        minutes: minutes of training, mean over seeds.
        returns: statistics by number of adaptation steps.
        speeds: mean over seeds in m/s, by number of adaptation steps; no entry if the task reports
            no speed.
        evaluated: True if the returns are from evaluations on held-out tasks; False if they are
            from the last tenth of training.
    """

    label: str
    seeds: int
    env_steps: float
    minutes: float
    returns: Mapping[int, ReturnStatistics]
    speeds: Mapping[int, float]
    evaluated: bool


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of values without the lowest and the highest quarter, rounded down."""
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def summarize(group: Group) -> Summary:
    """Return the statistics of a group."""
    runs = group.runs
    evaluated = all(run.evaluation is not None for run in runs)
    by_seed = [_evaluation_results(run) if evaluated else _training_results(run) for run in runs]
    common = sorted(set.intersection(*(set(returns) for returns, _ in by_seed)))
    speeds = {step: [speeds.get(step) for _, speeds in by_seed] for step in common}
    return Summary(
        label=group.label,
        seeds=len(runs),
        env_steps=float(np.mean([run.rows[-1]["total_env_steps"] for run in runs])),
        minutes=float(np.mean([run.rows[-1]["elapsed_s"] for run in runs])) / 60.0,
        returns={
            step: _statistics(runs, step, [returns[step] for returns, _ in by_seed], evaluated)
            for step in common
        },
        speeds={
            step: float(np.mean(known))
            for step, values in speeds.items()
            if (known := [speed for speed in values if speed is not None])
        },
        evaluated=evaluated,
    )


def comparison_figure(groups: Sequence[Group], by: str = "steps") -> Figure:
    """Plot return after (solid) and before (dashed) adaptation.

    Lines are means over seeds; a band shows the range from the lowest to the highest seed.

    Args:
        groups: groups of runs, one color each.
        by: horizontal axis, one of :data:`maml_ray.reporting.plots.X_AXES`.
    """
    last_rows = [run.rows[-1] for group in groups for run in group.runs]
    end = max(float(row["elapsed_s" if by == "time" else "total_env_steps"]) for row in last_rows)
    _, label = x_axis(last_rows, by, end)
    band = "; bands: lowest to highest seed" if any(len(group.runs) > 1 for group in groups) else ""
    figure, axes = new_figure(
        f"Return after (solid) and before (dashed) adaptation{band}",
        label,
        "mean return of an episode",
        (9.0, 5.0),
    )
    for index, group in enumerate(groups):
        color = COLORS[index % len(COLORS)]
        positions, after = mean_curves(group, "return_after", by, end)
        _, before = mean_curves(group, "return_before", by, end)
        name = literal(textwrap.fill(group.label, 40), max_length=200)
        axes.plot(positions, after.mean(axis=0), color=color, linewidth=2, label=name)
        if any(run.settings.inner.steps for run in group.runs):
            axes.plot(positions, before.mean(axis=0), color=color, linewidth=1.2, linestyle="--")
        if len(group.runs) > 1:
            axes.fill_between(
                positions, after.min(axis=0), after.max(axis=0), color=color, alpha=0.2, linewidth=0
            )
    style_legend(axes)
    return figure


def mean_curves(
    group: Group, key: str, by: str, end: float, *, logarithmic: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions (n,), means over seeds, and smoothed curves (seeds, n).

    Seeds are compared at equal environment steps: at equal times, one that ran on a busy machine
    would be compared with others that had trained for longer.

    Args:
        group: runs of the same settings.
        key: key of the rows of ``metrics.jsonl``.
        by: horizontal axis, one of :data:`maml_ray.reporting.plots.X_AXES`.
        end: environment steps or seconds, which decide the unit of the positions.
        logarithmic: space the points evenly on a logarithmic axis of environment steps.
    """
    steps = [column(run.rows, "total_env_steps") for run in group.runs]
    first, last = max(each[0] for each in steps), min(each[-1] for each in steps)
    common = (np.geomspace if logarithmic else np.linspace)(first, last, _CURVE_POINTS)
    positions, curves = [], []
    for run, own in zip(group.runs, steps, strict=True):
        positions.append(np.interp(common, own, x_axis(run.rows, by, end)[0]))
        curves.append(np.interp(common, own, smooth(column(run.rows, key))))
    return np.mean(positions, axis=0), np.stack(curves)


def write_comparison(groups: Sequence[Group], output: Path, by: str = "steps") -> list[Path]:
    """Write ``comparison.png`` and ``comparison.csv`` to the folder ``output``.

    Args:
        groups: groups of runs.
        output: folder, created if needed.
        by: horizontal axis of the plot, as for :func:`comparison_figure`.

    Returns:
        The two paths.

    Raises:
        RunDirError: a file cannot be written.
    """
    plot, table = output / "comparison.png", output / "comparison.csv"
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_figure(comparison_figure(groups, by), plot)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for summary in map(summarize, groups):
                training = (summary.label, summary.seeds, summary.env_steps, summary.minutes)
                for step, values in summary.returns.items():
                    numbers = (
                        values.mean,
                        *(values.interval or ("", "")),
                        values.interval_over or "",
                        values.interquartile_mean,
                        values.lowest,
                        values.highest,
                        summary.speeds.get(step, ""),
                    )
                    writer.writerow((*training, summary.evaluated, step, *numbers))
    except OSError as error:
        raise RunDirError(f"cannot write to {output}: {error.strerror}") from None
    return [plot, table]


def _statistics(
    runs: Sequence[Run], step: int, by_seed: Sequence[float], evaluated: bool
) -> ReturnStatistics:
    """Return statistics of the mean return of each seed, ``by_seed``, after ``step`` steps."""
    interval: Interval | None = None
    over: Literal["seeds", "tasks"] | None = None
    if len(runs) > 1:
        # Tasks of a seed share its policy and are not independent.
        interval, over = mean_interval(np.array(by_seed)), "seeds"
    elif evaluated:
        row = _rows_after(runs[0], step, "rows")[0]
        if row["low"] is not None and row["high"] is not None:
            interval, over = (row["low"], row["high"]), "tasks"
    by_task = [row["mean"] for run in runs for row in _rows_after(run, step, "rows_by_task")]
    return ReturnStatistics(
        mean=float(np.mean(by_seed)),
        interval=interval,
        interval_over=over,
        interquartile_mean=interquartile_mean(by_task if evaluated and by_task else by_seed),
        lowest=min(by_seed),
        highest=max(by_seed),
    )


def _rows_after(run: Run, step: int, key: str) -> list[Mapping[str, Any]]:
    """Return the rows of an evaluation after some number of steps, with stochastic actions."""
    rows = run.evaluation[key] if run.evaluation is not None else ()
    return [row for row in rows if (row["steps"], row["actions"]) == (step, "stochastic")]


def _evaluation_results(run: Run) -> tuple[dict[int, float], dict[int, float | None]]:
    """Return mean returns and speeds by number of steps, with stochastic actions."""
    assert run.evaluation is not None
    rows = [row for row in run.evaluation["rows"] if row["actions"] == "stochastic"]
    return (
        {row["steps"]: row["mean"] for row in rows},
        {row["steps"]: row.get("speed") for row in rows},
    )


def _training_results(run: Run) -> tuple[dict[int, float], dict[int, float | None]]:
    """Return the same from training, as means over the last tenth of its iterations."""
    last = run.rows[-max(1, len(run.rows) // 10) :]
    steps = run.settings.inner.steps
    returns = {
        0: float(np.mean(column(last, "return_before"))),
        steps: float(np.mean(column(last, "return_after"))),
    }
    speeds = {
        0: float(np.mean(column(last, "speed_before"))),
        steps: float(np.mean(column(last, "speed_after"))),
    }
    return returns, {step: None if np.isnan(speed) else speed for step, speed in speeds.items()}
