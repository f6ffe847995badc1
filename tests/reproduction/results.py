"""Write the table and the plots of maml_ray/docs/results.md from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maml_ray.reporting.comparison import (
    Group,
    Run,
    Summary,
    comparison_figure,
    read_runs,
    summarize,
)
from maml_ray.reporting.plots import COLORS, style_axes

CURVES: Mapping[str, tuple[str, ...]] = {
    "direction.png": ("direction-ppo", "direction-trpo"),
    "velocity.png": ("velocity-ppo", "velocity-trpo"),
    "orders.png": ("direction-ppo", "direction-first-order", "direction-no-adaptation"),
}
"""Return against environment steps; the last is the ablation at equal budget."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "direction-steps.png": (
        "direction-ppo",
        "direction-trpo",
        "direction-no-adaptation",
        "direction-oracle",
    ),
    "velocity-steps.png": (
        "velocity-ppo",
        "velocity-trpo",
        "velocity-no-adaptation",
        "velocity-oracle",
    ),
}
"""Return against gradient steps, as figure 5 of Finn et al. 2017."""


def write_results(runs: Mapping[str, Sequence[Path]], output: Path) -> Path:
    """Write the table and the plots of the experiments that have runs.

    Args:
        runs: evaluated run directories, one per seed, by name of the experiment.
        output: folder to write to.

    Returns:
        Path of the table.
    """
    output.mkdir(parents=True, exist_ok=True)
    groups = {name: Group(name, tuple(read_runs(paths))) for name, paths in runs.items()}
    for file, names in CURVES.items():
        shown = [groups[name] for name in names if name in groups]
        if shown:
            comparison_figure(shown).savefig(output / file, dpi=100)
    for file, names in STEPS.items():
        shown = [groups[name] for name in names if name in groups]
        if shown:
            steps_figure(shown).savefig(output / file, dpi=100)
    table = output / "table.md"
    lines = [*_HEAD, *(_line(summarize(group)) for group in groups.values())]
    random = _random_lines(groups)
    table.write_text("\n".join([*lines, *random]) + "\n", encoding="utf-8")
    return table


def steps_figure(groups: Sequence[Group]) -> Figure:
    """Plot return against gradient steps: mean over seeds, bars from lowest to highest seed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        returns = summarize(group).returns
        means = np.array([values.mean for values in returns.values()])
        ends = np.array([(values.lowest, values.highest) for values in returns.values()]).T
        axes.errorbar(
            list(returns),
            means,
            yerr=np.abs(ends - means),
            label=group.label,
            color=COLORS[place % len(COLORS)],
            marker="o",
            capsize=4,
        )
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("mean return of an episode")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    style_axes(axes)
    return figure


_HEAD = (
    "| experiment | seeds | env steps | minutes | before | after 1 step | after 2 | after 3 |",
    "|---|---|---|---|---|---|---|---|",
)


def _line(summary: Summary) -> str:
    cells = [_cell(summary, step) for step in range(4)]
    return (
        f"| {summary.label} | {summary.seeds} | {summary.env_steps / 1e6:.1f} M "
        f"| {summary.minutes:.1f} | {' | '.join(cells)} |"
    )


def _cell(summary: Summary, step: int) -> str:
    if step not in summary.returns:
        return ""
    values = summary.returns[step]
    mean = values.mean
    spread = f" ({values.lowest:.0f} to {values.highest:.0f})" if summary.seeds > 1 else ""
    speed = f", {summary.speeds[step]:.2f} m/s" if step in summary.speeds else ""
    return f"{mean:.0f}{spread}{speed}"


def _random_lines(groups: Mapping[str, Group]) -> list[str]:
    """Return one row per family: the untrained policy, evaluated by the same protocol."""
    lines = []
    for family in ("direction", "velocity"):
        run: Run | None = next(
            (group.runs[0] for name, group in groups.items() if name == f"{family}-ppo"), None
        )
        if run is None or run.evaluation is None or "random" not in run.evaluation["beside"]:
            continue
        rows = [row for row in run.evaluation["beside"]["random"] if row["actions"] == "stochastic"]
        cells = [f"{row['mean']:.0f}, {row['speed']:.2f} m/s" for row in rows]
        lines.append(f"| {family}-random | 1 | 0 | | {' | '.join(cells)} |")
    return lines
