from __future__ import annotations

import csv
import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from maml_ray.cli.tables import print_comparison
from maml_ray.reporting.comparison import (
    Summary,
    comparison_figure,
    interquartile_mean,
    summarize,
    write_comparison,
)
from maml_ray.reporting.run_groups import (
    group_by_settings,
    read_runs,
)
from tests.reporting.conftest import MakeRun


def means_and_ranges(summary: Summary) -> dict[int, tuple[float, float, float]]:
    return {
        step: (values.mean, values.lowest, values.highest)
        for step, values in summary.returns.items()
    }


def test_a_summary_is_of_the_evaluations_where_every_seed_has_one(make_run: MakeRun) -> None:
    paths = [make_run(f"x-{seed}", f"run.seed={seed}", evaluated=10.0 * seed) for seed in range(3)]
    summary = summarize(group_by_settings(read_runs(paths))[0])
    assert summary.evaluated
    assert (summary.seeds, summary.env_steps) == (3, 40_000)
    assert summary.minutes == pytest.approx(20.0 / 60.0)
    assert means_and_ranges(summary) == {
        0: (10.0, 0.0, 20.0),
        1: (11.0, 1.0, 21.0),
        2: (12.0, 2.0, 22.0),
    }
    assert summary.speeds == {0: 20.0, 1: 20.0, 2: 20.0}


def test_otherwise_it_is_of_trainings_last_tenth(make_run: MakeRun) -> None:
    paths = [
        make_run("x-0", "run.seed=0", gain=2.0, evaluated=5.0),
        make_run("x-1", "run.seed=1", gain=4.0),
    ]
    summary = summarize(group_by_settings(read_runs(paths))[0])
    assert not summary.evaluated
    assert means_and_ranges(summary) == {0: (-1.0, -1.0, -1.0), 1: (27.0, 18.0, 36.0)}
    assert summary.speeds == {1: 1.5}  # none before adaptation


def test_the_curves_are_the_mean_and_the_range_over_seeds(make_run: MakeRun) -> None:
    paths = [make_run(f"x-{seed}", f"run.seed={seed}", gain=1.0 + seed) for seed in range(3)]
    (axes,) = comparison_figure(group_by_settings(read_runs(paths))).axes
    after, before = axes.get_lines()
    steps = np.asarray(after.get_xdata())
    middle = slice(90, 110)  # between the two whole windows of the smoothing
    expected = 2.0 * (steps * 1e3 / 4000 - 1)
    np.testing.assert_allclose(np.asarray(after.get_ydata())[middle], expected[middle], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(before.get_ydata()), -1.0)
    assert before.get_linestyle() == "--"
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    assert box.y1 == pytest.approx(1.5 * float(np.asarray(after.get_ydata()).max()), rel=0.01)


def test_plot_and_table_are_written(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("x-0", evaluated=1.0), make_run("y-0", "outer.epochs=3", evaluated=7.0)]
    plot, table = write_comparison(group_by_settings(read_runs(paths)), tmp_path / "out")
    assert iio.imread(plot)[..., :3].std() > 5
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["runs"], line["adaptation_steps"], line["mean_return"]) for line in lines] == [
        (name, str(step), str(value + step))
        for name, value in (("x", 1.0), ("y", 7.0))
        for step in range(3)
    ]


def printed(summaries: list[Summary], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(console, summaries)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_on_a_terminal_shows_every_group(make_run: MakeRun) -> None:
    paths = [make_run("x-0", evaluated=1.0), make_run("y-0", "outer.epochs=3")]
    summaries = [summarize(group) for group in group_by_settings(read_runs(paths))]
    text = printed(summaries, 120)
    for words in ("before", "after 2 steps", "3.0", "2.00", "evaluated", "in training", "0.04 M"):
        assert words in text, words


def test_names_and_numbers_are_never_cut_on_a_narrow_terminal(make_run: MakeRun) -> None:
    name = "a-very-long-name-that-has-no-space-to-break-at-0123456789abcdefg"
    paths = [
        make_run(f"{name}-{seed}", f"run.name={name}", f"run.seed={seed}", evaluated=value)
        for seed, value in enumerate((-12345.0, -1234.0))
    ]
    summary = summarize(group_by_settings(read_runs(paths))[0])
    text = printed([summary], 80)
    assert name in text
    assert "-12345 to -1234" in text
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("count", range(1, 14))
def test_the_interquartile_mean_is_that_of_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    expected = scipy.stats.trim_mean(values, 0.25)
    assert interquartile_mean(list(values)) == pytest.approx(expected)


def test_the_interquartile_mean_is_over_the_tasks_of_all_seeds(make_run: MakeRun) -> None:
    paths = [
        make_run(f"x-{seed}", f"run.seed={seed}", evaluated=10.0 * seed, by_task=(-3.0, 0.0, 99.0))
        for seed in range(2)
    ]
    summary = summarize(group_by_settings(read_runs(paths))[0])
    tasks = [10.0 * seed + shift for seed in range(2) for shift in (-3.0, 0.0, 99.0)]
    for step, values in summary.returns.items():
        expected = scipy.stats.trim_mean(tasks, 0.25) + step
        assert values.interquartile_mean == pytest.approx(expected)


def test_the_interval_is_a_t_interval_over_seeds(make_run: MakeRun) -> None:
    returns = [0.0, 3.0, 10.0, 11.0, 25.0]
    paths = [
        make_run(f"x-{seed}", f"run.seed={seed}", evaluated=value, by_task=(-50.0, 50.0))
        for seed, value in enumerate(returns)
    ]
    values = summarize(group_by_settings(read_runs(paths))[0]).returns[0]
    expected = scipy.stats.ttest_1samp(returns, 0.0).confidence_interval(0.95)
    assert values.interval == pytest.approx((expected.low, expected.high))
    assert values.interval_over == "seeds"


def test_one_seed_has_the_interval_of_its_evaluation_or_none(make_run: MakeRun) -> None:
    evaluated, trained = (
        summarize(group_by_settings(read_runs([path]))[0])
        for path in (make_run("x-0", evaluated=4.0), make_run("y-0"))
    )
    assert evaluated.returns[1].interval == (4.0, 4.0)  # as in evaluation.json
    assert evaluated.returns[1].interval_over == "tasks"
    assert trained.returns[1].interval is None
    assert trained.returns[1].interval_over is None


def test_curves_can_be_drawn_against_time_and_iterations(make_run: MakeRun) -> None:
    paths = [make_run(f"x-{seed}", f"run.seed={seed}", wall_s=60.0 * seed) for seed in (1, 3)]
    groups = group_by_settings(read_runs(paths))
    for by, first, last, label in (
        ("time", 2.0, 20.0, "training time (minutes)"),
        ("iterations", 1.0, 10.0, "finished iterations"),
        ("steps", 4.0, 40.0, "environment steps (thousand)"),
    ):
        (axes,) = comparison_figure(groups, by).axes
        positions = np.asarray(axes.get_lines()[0].get_xdata())
        assert (positions[0], positions[-1]) == pytest.approx((first, last)), by
        assert axes.get_xlabel() == label
