"""Compare runs in one plot and one table, grouping seeds of the same settings."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from maml_ray.common.errors import RunDirError
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, open_run_dir
from maml_ray.reporting.plots import COLORS, column, save_figure, smooth, style_axes

_IGNORED_SECTIONS = {"run", "cluster", "evaluation"}
"""Sections of the settings that may differ within a group."""
_CURVE_POINTS = 200
_COLUMNS = (
    "runs",
    "seeds",
    "env_steps",
    "minutes",
    "evaluated",
    "adaptation_steps",
    "mean_return",
    "lowest_seed",
    "highest_seed",
    "mean_speed",
)


@dataclass(frozen=True)
class Run:
    """Content of a run directory.

    Attributes:
        run_dir: run directory.
        settings: settings of the run.
        rows: rows of ``metrics.jsonl``, at least one.
        evaluation: content of ``evaluation.json``; None if the run has not been evaluated.
    """

    run_dir: RunDir
    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ only in the seed.

    Attributes:
        label: label that distinguishes it from the other groups.
        runs: one run per seed.
    """

    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Summary:
    """Statistics of a group, one row of the comparison table.

    Attributes:
        label: label of the group.
        seeds: number of runs.
        env_steps: environment steps of training, mean over seeds.
        minutes: minutes of training, mean over seeds.
        returns: mean over seeds, lowest and highest seed, by number of adaptation steps.
        speeds: mean over seeds in m/s, by number of adaptation steps; no entry if the task reports
            no speed.
        evaluated: True if the returns are from evaluations on held-out tasks; False if they are
            from the last tenth of training.
    """

    label: str
    seeds: int
    env_steps: float
    minutes: float
    returns: Mapping[int, tuple[float, float, float]]
    speeds: Mapping[int, float]
    evaluated: bool


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs at ``paths``.

    Args:
        paths: run directories, or folders that contain some.

    Raises:
        RunDirError: a path has no run, or a run is damaged or has not finished an iteration.
    """
    run_dirs: list[RunDir] = []
    for path in paths:
        inside = sorted(path.glob("*/settings.yaml")) if os.path.isdir(path) else []
        if inside and not os.path.lexists(path / "settings.yaml"):
            run_dirs += [open_run_dir(settings.parent) for settings in inside]
        else:
            run_dirs.append(open_run_dir(path))
    return [_read(run_dir) for run_dir in run_dirs]


def group_by_settings(runs: Sequence[Run]) -> list[Group]:
    """Group runs by the settings that affect learning, ordered by first occurrence."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(_learning_settings(run.settings)), []).append(run)
    labels = _labels([members[0].settings for members in groups.values()])
    return [
        Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)
    ]


def summarize(group: Group) -> Summary:
    """Return the statistics of a group."""
    runs = group.runs
    evaluated = all(run.evaluation is not None for run in runs)
    by_seed = [_evaluation_results(run) if evaluated else _training_results(run) for run in runs]
    common = sorted(set.intersection(*(set(returns) for returns, _ in by_seed)))
    returns = {step: [returns[step] for returns, _ in by_seed] for step in common}
    speeds = {step: [speeds.get(step) for _, speeds in by_seed] for step in common}
    return Summary(
        label=group.label,
        seeds=len(runs),
        env_steps=float(np.mean([run.rows[-1]["total_env_steps"] for run in runs])),
        minutes=float(np.mean([run.rows[-1]["elapsed_s"] for run in runs])) / 60.0,
        returns={
            step: (float(np.mean(values)), min(values), max(values))
            for step, values in returns.items()
        },
        speeds={
            step: float(np.mean(known))
            for step, values in speeds.items()
            if (known := [speed for speed in values if speed is not None])
        },
        evaluated=evaluated,
    )


def comparison_figure(groups: Sequence[Group]) -> Figure:
    """Plot return after (solid) and before (dashed) adaptation over environment steps.

    Lines are means over seeds; a band shows the range from the lowest to the highest seed.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, group in enumerate(groups):
        color = COLORS[index % len(COLORS)]
        steps, after = _curves(group, "return_after")
        _, before = _curves(group, "return_before")
        axes.plot(steps / 1e6, after.mean(axis=0), color=color, linewidth=2, label=group.label)
        if any(run.settings.inner.steps for run in group.runs):
            axes.plot(steps / 1e6, before.mean(axis=0), color=color, linewidth=1, linestyle="--")
        if len(group.runs) > 1:
            axes.fill_between(
                steps / 1e6, after.min(axis=0), after.max(axis=0), color=color, alpha=0.2
            )
    axes.set_xlabel("environment steps (million)")
    axes.set_ylabel("mean return: after (solid) and before (dashed) adaptation")
    axes.legend(frameon=False)
    style_axes(axes)
    return figure


def write_comparison(groups: Sequence[Group], output: Path) -> list[Path]:
    """Write ``comparison.png`` and ``comparison.csv`` to the folder ``output``.

    Returns:
        The two paths.

    Raises:
        RunDirError: a file cannot be written.
    """
    plot, table = output / "comparison.png", output / "comparison.csv"
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_figure(comparison_figure(groups), plot)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for summary in map(summarize, groups):
                training = (summary.label, summary.seeds, summary.env_steps, summary.minutes)
                for step, returns in summary.returns.items():
                    speed = summary.speeds.get(step, "")
                    writer.writerow((*training, summary.evaluated, step, *returns, speed))
    except OSError as error:
        raise RunDirError(f"cannot write to {output}: {error.strerror}") from None
    return [plot, table]


def _read(run_dir: RunDir) -> Run:
    settings = load_settings(run_dir.settings, recorded=True)
    rows = read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []
    if not rows:
        raise RunDirError(f"{run_dir.path} has not finished an iteration")
    evaluated = os.path.lexists(run_dir.evaluation)
    evaluation = read_evaluation(run_dir.evaluation) if evaluated else None
    return Run(run_dir, settings, rows, evaluation)


def _learning_settings(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_IGNORED_SECTIONS)


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Return run names if they are distinct, else the first four settings that differ."""
    names = [each.run.name for each in settings]
    if len(set(names)) == len(names):
        return names
    flattened = [_flatten(_learning_settings(each)) for each in settings]
    keys = [key for key in flattened[0] if len({repr(each.get(key)) for each in flattened}) > 1]
    return [
        ", ".join(f"{key.rpartition('.')[2]}={each.get(key)}" for key in keys[:4]) or name
        for each, name in zip(flattened, names, strict=True)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= _flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


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


def _curves(group: Group, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return environment steps (n,) common to all seeds and smoothed curves (seeds, n)."""
    ends = [run.rows[-1]["total_env_steps"] for run in group.runs]
    starts = [run.rows[0]["total_env_steps"] for run in group.runs]
    steps = np.linspace(max(starts), min(ends), _CURVE_POINTS)
    curves = [
        np.interp(steps, column(run.rows, "total_env_steps"), smooth(column(run.rows, key)))
        for run in group.runs
    ]
    return steps, np.stack(curves)
