from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from maml_ray.reporting.plots.evaluation import evaluation_figure, evaluation_figures, tasks_figure
from maml_ray.reporting.plots.training import (
    iteration_figure,
    returns_figure,
    run_figures,
    smooth,
    time_figure,
    x_axis,
)
from tests.reporting.conftest import MakeRecord


def test_the_curves_show_the_returns_against_environment_steps(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(6)]
    (axes,) = returns_figure(rows).axes
    before, _, after, _ = axes.get_lines()
    np.testing.assert_allclose(np.asarray(before.get_xdata()), 4.0 * np.arange(1, 7))
    np.testing.assert_allclose(np.asarray(before.get_ydata()), 10.0 * np.arange(6))
    np.testing.assert_allclose(np.asarray(after.get_ydata()), 12.0 * np.arange(6))
    assert axes.get_xlabel() == "environment steps (thousand)"
    assert "return" in axes.get_ylabel()


def test_the_curves_show_the_returns_against_time_too(record: MakeRecord) -> None:
    rows = [record(iteration, wall_s=60.0).as_row() for iteration in range(6)]
    (axes,) = returns_figure(rows, by="time").axes
    line = axes.get_lines()[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), np.arange(1, 7))
    assert axes.get_xlabel() == "training time (minutes)"


@pytest.mark.parametrize(
    ("by", "end", "scale", "label"),
    [
        ("steps", 999_999, 1e3, "environment steps (thousand)"),
        ("steps", 4_000_000, 1e6, "environment steps (million)"),
        ("time", 119, 1.0, "training time (seconds)"),
        ("time", 7_199, 60.0, "training time (minutes)"),
        ("time", 7_200, 3600.0, "training time (hours)"),
    ],
)
def test_the_unit_of_an_axis_fits_its_end(by: str, end: float, scale: float, label: str) -> None:
    key = "total_env_steps" if by == "steps" else "elapsed_s"
    positions, shown = x_axis([{key: end / 2}, {key: end}], by)
    assert shown == label
    np.testing.assert_allclose(positions, [end / 2 / scale, end / scale])


def test_every_plot_has_a_title_and_labeled_axes(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(6)]
    figures = run_figures(rows) | evaluation_figures(evaluation_by_task(["x", "y"], {}))
    assert len(figures) == 11
    for name, figure in figures.items():
        (axes,) = figure.axes
        for text in (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()):
            assert len(text) > 3, name
    titles = {figure.axes[0].get_title(loc="left") for figure in figures.values()}
    assert len(titles) == len(figures)


def test_the_shares_of_time_fill_the_plot(record: MakeRecord) -> None:
    (axes,) = time_figure([record(iteration).as_row() for iteration in range(4)]).axes
    tops = [area.get_datalim(axes.transData).y1 for area in axes.collections]
    np.testing.assert_allclose(tops, [50.0, 62.5, 87.5, 100.0])


def test_one_iteration_alone_can_be_seen(record: MakeRecord) -> None:
    figures = run_figures([record(8).as_row()])
    shares = figures.pop("time").axes[0]
    for name, figure in figures.items():
        lines = figure.axes[0].get_lines()
        assert any(line.get_marker() == "o" for line in lines), name
    for area in shares.collections:
        box = area.get_datalim(shares.transData)
        assert (box.x0, box.x1) == (8.0, 9.0)
        assert box.height > 1.0


def test_an_iteration_has_its_own_shares_from_its_number_to_the_next(record: MakeRecord) -> None:
    rows = [record(0).as_row(), record(1).as_row()]
    rows[1].update(collect_s=1.5, adapt_s=0.25, learn_s=0.25, rest_s=0.0)
    (axes,) = time_figure(rows).axes
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices).round(6).tolist()
    for corner in ([0.0, 50.0], [1.0, 50.0], [1.0, 75.0], [2.0, 75.0]):
        assert corner in corners


def test_kl_is_plotted_on_support_and_on_query_data(record: MakeRecord) -> None:
    (kl,) = run_figures([record(iteration).as_row() for iteration in range(6)])["kl"].axes
    assert [line.get_label() for line in kl.get_lines()] == ["on support data", "on query data"]
    for line, value in zip(kl.get_lines(), (0.01, 0.02), strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), value)
    assert "nats" in kl.get_ylabel()


def test_without_rows_there_is_nothing_to_draw() -> None:
    assert run_figures([]) == {}


def test_smoothing_is_a_centered_mean_that_skips_gaps() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 14.0, 10.0])
    np.testing.assert_allclose(smooth(values, window=3), [1.5, 1.5, 3.0, 9.0, 28 / 3, 12.0])


def test_smoothing_leaves_a_short_run_its_shape() -> None:
    values = np.arange(5.0) ** 2
    np.testing.assert_array_equal(smooth(values), values)
    assert np.ptp(smooth(np.arange(10.0))) == 8.0, "a mean over 3, and over 2 at the ends"


def test_occasional_diagnostics_are_plotted_at_their_iterations(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(5)]
    (axes,) = iteration_figure(rows, "a title", "a label", {"gradient_snr": ""}).axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0, 2, 4])
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [3.0] * 3)


def row(steps: int, mean: float, actions: str = "stochastic", **changes: Any) -> dict[str, Any]:
    interval = {"low": mean - 3, "high": mean + 5}
    return {"steps": steps, "actions": actions, "mean": mean, **interval, **changes}


def evaluation_by_task(
    tasks: list[str], parameters: dict[str, dict[str, float]], steps: int = 2
) -> dict[str, Any]:
    """An evaluation in which each step gains 10 on every task, and task i starts at i."""
    rows = [
        row(step, index + 10.0 * step, actions, task=task)
        for index, task in enumerate(tasks)
        for step in range(steps + 1)
        for actions in ("stochastic", "mean")
    ]
    return {"rows": [row(0, 1.0)], "rows_by_task": rows, "task_parameters": parameters}


def test_the_evaluation_is_plotted_with_intervals_and_baselines() -> None:
    rows = [row(0, 10.0), row(0, 99.0, "mean"), row(1, 20.0), row(1, 98.0, "mean")]
    figure = evaluation_figure({"rows": rows, "beside": {"random": [row(0, 1.0), row(1, 2.0)]}})
    (axes,) = figure.axes
    containers = axes.containers
    assert [container.get_label() for container in containers] == ["meta-trained", "random"]
    for container, means in zip(containers, ([10.0, 20.0], [1.0, 2.0]), strict=True):
        line, _, (bars,) = container
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0, 1])
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), means)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, [[mean - 3, mean + 5] for mean in means])


def by_task(evaluation: dict[str, Any]) -> Figure:
    figure = tasks_figure(evaluation)
    assert figure is not None
    return figure


def test_a_few_tasks_are_bars_before_and_after_the_last_step() -> None:
    directions = {"forward": {"direction": 1.0}, "backward": {"direction": -1.0}}
    (axes,) = by_task(evaluation_by_task(["forward", "backward"], directions)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["backward", "forward"]
    before, after = (
        [bar.get_width() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")
    )
    assert (before, after) == ([1.0, 0.0], [21.0, 20.0])


def test_tasks_of_one_parameter_are_a_curve_over_it() -> None:
    speeds = {"2 m/s": 2.0, "0.5 m/s": 0.5, "1 m/s": 1.0, "1.5 m/s": 1.5, "0.1 m/s": 0.1}
    parameters = {task: {"speed": speed} for task, speed in speeds.items()}
    (axes,) = by_task(evaluation_by_task(list(speeds), parameters)).axes
    assert axes.get_xlabel() == "speed of the task (m/s)"
    for container, gain in zip(axes.containers, (0.0, 20.0), strict=True):
        line = container[0]
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0.1, 0.5, 1.0, 1.5, 2.0])
        np.testing.assert_array_equal(np.asarray(line.get_ydata()) - gain, [4, 1, 2, 3, 0])


@pytest.mark.parametrize("known", [True, False])
def test_many_tasks_of_several_parameters_are_points_before_and_after(known: bool) -> None:
    tasks = [f"dynamics {number}" for number in range(11)]
    parameters = {task: {"mass": 1.0, "friction": 2.0} for task in tasks} if known else {}
    (axes,) = by_task(evaluation_by_task(tasks, parameters)).axes
    points = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_array_equal(points, [(i, i + 20.0) for i in range(11)])
    (diagonal,) = axes.get_lines()
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


def test_one_task_has_no_plot_by_task() -> None:
    assert set(evaluation_figures(evaluation_by_task(["only"], {}))) == {"evaluation"}
