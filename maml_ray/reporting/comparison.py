"""Several runs side by side: one plot, one table, seeds of the same settings taken together."""

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

_NOT_MATHEMATICS = ("run", "cluster", "evaluation")
_POINTS = 200
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
    """What a run folder tells: settings, training figures, and the evaluation if there is one."""

    folder: RunDir
    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None


@dataclass(frozen=True)
class Group:
    """Runs of the same settings but for the seed.

    Attributes:
        label: what tells it from the other groups.
        runs: one a seed.
    """

    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Summary:
    """A group in one line.

    Attributes:
        label: of the group.
        seeds: number of runs.
        env_steps: of training, mean over seeds.
        minutes: of training, mean over seeds.
        returns: by number of adaptation steps: mean over seeds, lowest and highest seed.
        speeds: by number of adaptation steps: mean over seeds in m/s, where the task tells any.
        evaluated: whether the returns are an evaluation's, on held-out tasks; otherwise they are
            training's own, over its last tenth.
    """

    label: str
    seeds: int
    env_steps: float
    minutes: float
    returns: Mapping[int, tuple[float, float, float]]
    speeds: Mapping[int, float]
    evaluated: bool


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at ``paths``: run folders, or folders of run folders.

    Raises:
        RunDirError: there is no run at a path, or one is damaged or has not finished an
            iteration.
    """
    folders: list[RunDir] = []
    for path in paths:
        inside = sorted(path.glob("*/settings.yaml")) if os.path.isdir(path) else []
        if inside and not os.path.lexists(path / "settings.yaml"):
            folders += [open_run_dir(settings.parent) for settings in inside]
        else:
            folders.append(open_run_dir(path))
    return [_read(folder) for folder in folders]


def group_by_settings(runs: Sequence[Run]) -> list[Group]:
    """Runs of equal mathematics together, in the order of their first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = run.settings.model_dump(mode="json", exclude=set(_NOT_MATHEMATICS))
        groups.setdefault(repr(same), []).append(run)
    members = [tuple(group) for group in groups.values()]
    labels = _labels([group[0].settings for group in members])
    return [Group(label, group) for label, group in zip(labels, members, strict=True)]


def summarize(group: Group) -> Summary:
    """A group's line of the table."""
    runs = group.runs
    evaluated = all(run.evaluation is not None for run in runs)
    by_seed = [_evaluated(run) if evaluated else _trained(run) for run in runs]
    common = sorted(set.intersection(*(set(returns) for returns, _ in by_seed)))
    values = {step: [returns[step] for returns, _ in by_seed] for step in common}
    speeds = {step: [found.get(step) for _, found in by_seed] for step in common}
    return Summary(
        label=group.label,
        seeds=len(runs),
        env_steps=float(np.mean([run.rows[-1]["total_env_steps"] for run in runs])),
        minutes=float(np.mean([run.rows[-1]["elapsed_s"] for run in runs])) / 60.0,
        returns={
            step: (float(np.mean(seeds)), min(seeds), max(seeds)) for step, seeds in values.items()
        },
        speeds={
            step: float(np.mean(known))
            for step, found in speeds.items()
            if (known := [speed for speed in found if speed is not None])
        },
        evaluated=evaluated,
    )


def comparison_figure(groups: Sequence[Group]) -> Figure:
    """Return against environment steps: after adaptation, and before it as a dashed line.

    The mean over seeds, and a band from the lowest to the highest.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        color = COLORS[place % len(COLORS)]
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
    """``comparison.png`` and ``comparison.csv`` in the folder ``output``.

    Raises:
        RunDirError: they cannot be written.
    """
    plot, table = output / "comparison.png", output / "comparison.csv"
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_figure(comparison_figure(groups), plot)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for summary in map(summarize, groups):
                head = (summary.label, summary.seeds, summary.env_steps, summary.minutes)
                for step, returns in summary.returns.items():
                    speed = summary.speeds.get(step, "")
                    writer.writerow((*head, summary.evaluated, step, *returns, speed))
    except OSError as error:
        raise RunDirError(f"cannot write to {output}: {error.strerror}") from None
    return [plot, table]


def _read(folder: RunDir) -> Run:
    settings = load_settings(folder.settings)
    rows = read_metrics(folder.metrics) if os.path.lexists(folder.metrics) else []
    if not rows:
        raise RunDirError(f"{folder.path} has not finished an iteration")
    there = os.path.lexists(folder.evaluation)
    evaluation = read_evaluation(folder.evaluation) if there else None
    return Run(folder, settings, rows, evaluation)


def _labels(settings: Sequence[Settings]) -> list[str]:
    """What the groups differ in; the run's name where they differ in nothing or in much."""
    names = [one.run.name for one in settings]
    if len(set(names)) == len(names):
        return names
    flat = [_flat(one.model_dump(mode="json", exclude=set(_NOT_MATHEMATICS))) for one in settings]
    keys = [key for key in flat[0] if len({repr(one.get(key)) for one in flat}) > 1]
    return [
        ", ".join(f"{key.rpartition('.')[2]}={one.get(key)}" for key in keys[:4]) or name
        for one, name in zip(flat, names, strict=True)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _evaluated(run: Run) -> tuple[dict[int, float], dict[int, float | None]]:
    """Return and speed by number of steps, sampled actions, as evaluated."""
    assert run.evaluation is not None
    rows = [row for row in run.evaluation["rows"] if row["actions"] == "stochastic"]
    return (
        {row["steps"]: row["mean"] for row in rows},
        {row["steps"]: row.get("speed") for row in rows},
    )


def _trained(run: Run) -> tuple[dict[int, float], dict[int, float | None]]:
    """The same from training itself, over the last tenth of its iterations."""
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
    """Common env steps (n,) and a smoothed curve a seed (seeds, n)."""
    ends = [run.rows[-1]["total_env_steps"] for run in group.runs]
    starts = [run.rows[0]["total_env_steps"] for run in group.runs]
    steps = np.linspace(max(starts), min(ends), _POINTS)
    curves = [
        np.interp(steps, column(run.rows, "total_env_steps"), smooth(column(run.rows, key)))
        for run in group.runs
    ]
    return steps, np.stack(curves)
