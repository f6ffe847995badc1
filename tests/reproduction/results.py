"""Write the table and the plots of the finished runs, and say which runs are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from maml_ray.common.safe_files import write_atomic
from maml_ray.config.settings import SettingsError
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.plots.style import save_figure
from tests.reproduction.captions import animation_caption, caption
from tests.reproduction.experiments import PLOTS, Experiment
from tests.reproduction.measurements import Result, read_result
from tests.reproduction.plots import (
    directions_figure,
    gradient_steps_figure,
    returns_figure,
    speeds_figure,
)
from tests.reproduction.published_results import (
    CURVES,
    RETURNS,
    PublishedCurve,
    PublishedReturns,
)
from tests.reproduction.runs import describe_missing, describe_other_settings, run_folder
from tests.reproduction.table import table


def write_results(base: Path, runs: Sequence[tuple[Experiment, int]], output: Path) -> str:
    """Write ``table.md``, the plots, and ``plots.md`` with their captions, from finished runs.

    Args:
        base: folder of the run directories.
        runs: experiments and seeds; those that are not finished are named in the table.
        output: folder to write to.

    Returns:
        Content of ``table.md``.
    """
    results, missing = read_finished(base, runs)
    output.mkdir(parents=True, exist_ok=True)
    text = table(results, missing)
    write_atomic(output / "table.md", text)
    sections = [
        section
        for plots, title in PLOTS.items()
        if (shown := [result for result in results if plots in result.experiment.plots])
        for section in _write_plots(plots, title, shown, output)
    ]
    sections += _animations(output)
    write_atomic(output / "plots.md", "\n".join(["# Plots", *sections]))
    return text


def read_finished(
    base: Path, runs: Sequence[tuple[Experiment, int]]
) -> tuple[list[Result], list[str]]:
    """Return the results of finished runs, and a line on each run that is missing or differs."""
    finished: dict[str, list[Path]] = {}
    experiments = {experiment.name: experiment for experiment, _ in runs}
    notes = []
    for experiment, seed in sorted(runs, key=lambda run: list(experiments).index(run[0].name)):
        folder = run_folder(base, experiment, seed)
        missing = describe_missing(folder, experiment.steps)
        if missing is None:
            finished.setdefault(experiment.name, []).append(folder.path)
        note = _note(folder, experiment, seed, missing)
        if note is not None:
            notes.append(note)
    return [read_result(experiments[name], paths) for name, paths in finished.items()], notes


def _note(folder: RunDir, experiment: Experiment, seed: int, missing: str | None) -> str | None:
    """Return a line about a run that is missing, or was trained with other settings."""
    name = f"{experiment.name}, seed {seed}"
    try:
        settings = experiment.settings(seed)
        other = None if missing else describe_other_settings(folder, settings)
    except SettingsError as error:
        other = str(error)
    if missing is not None:
        return f"{name}: {missing}" + ("" if other is None else f" ({other})")
    return None if other is None else f"{name} is in the table, but {other}"


def _write_plots(plots: str, title: str, results: Sequence[Result], output: Path) -> list[str]:
    """Write the plots of a group, and return their Markdown."""
    curves = [curve for curve in CURVES if curve.plots == plots]
    returns = [each for each in RETURNS if each.plots == plots]
    draw: Mapping[
        str,
        tuple[Callable[[], Figure | None], Sequence[PublishedCurve], Sequence[PublishedReturns]],
    ] = {
        "steps": (
            lambda: returns_figure(results, curves, returns, title, "steps"),
            curves,
            returns,
        ),
        "time": (lambda: returns_figure(results, curves, returns, title, "time"), curves, returns),
        "gradient-steps": (lambda: gradient_steps_figure(results, returns, title), (), returns),
        "directions": (lambda: directions_figure(results, f"{title}: return in each"), (), ()),
        "speeds": (lambda: speeds_figure(results, title), (), ()),
    }
    sections = [f"\n## {title}\n"]
    for kind, (make, shown_curves, shown_returns) in draw.items():
        figure = make()
        if figure is None:
            continue
        file = f"{plots}-{kind}.png"
        save_figure(figure, output / file)
        text = caption(kind, results, shown_curves, shown_returns)
        sections.append(f"![{title}: {kind.replace('-', ' ')}]({file})\n\n*{text}*\n")
    return sections


def _animations(output: Path) -> list[str]:
    """Return the Markdown of the animations in a folder."""
    sections = ["\n## Animations\n"]
    for path in sorted(output.glob("*.webp")):
        text = animation_caption(*path.stem.split("--", 1))
        sections.append(f"![{path.stem}]({path.name})\n\n*{text}*\n")
    return sections if len(sections) > 1 else []
