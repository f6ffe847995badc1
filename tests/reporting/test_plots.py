from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.plots import (
    evaluation_figure,
    meta_update_figure,
    returns_figure,
    smooth,
    time_figure,
    write_plots,
)
from tests.reporting.conftest import MakeRecord


def test_the_curves_show_the_returns_against_million_steps(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(6)]
    (axes,) = returns_figure(rows).axes
    before, _, after, _ = axes.get_lines()
    np.testing.assert_allclose(np.asarray(before.get_xdata()), 0.004 * np.arange(1, 7))
    np.testing.assert_allclose(np.asarray(before.get_ydata()), 10.0 * np.arange(6))
    np.testing.assert_allclose(np.asarray(after.get_ydata()), 12.0 * np.arange(6))
    assert "million" in axes.get_xlabel()
    assert "return" in axes.get_ylabel()


def test_the_shares_of_time_fill_the_plot(record: MakeRecord) -> None:
    (axes,) = time_figure([record(iteration).as_row() for iteration in range(4)]).axes
    tops = [area.get_datalim(axes.transData).y1 for area in axes.collections]
    np.testing.assert_allclose(tops, [50.0, 62.5, 87.5, 100.0])


def test_one_iteration_alone_can_be_seen(record: MakeRecord) -> None:
    rows = [record(8).as_row()]
    (returns,) = returns_figure(rows).axes
    lines = [line for axes in meta_update_figure(rows).axes for line in axes.get_lines()]
    lines += [line for line in returns.get_lines() if line.get_linewidth() == 2]
    assert len(lines) == 9
    assert all(line.get_marker() == "o" for line in lines)
    (shares,) = time_figure(rows).axes
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
    rows = [record(iteration).as_row() for iteration in range(6)]
    kl = meta_update_figure(rows).axes[2]
    assert [line.get_label() for line in kl.get_lines()] == ["support data", "query data"]
    for line, value in zip(kl.get_lines(), (0.01, 0.02), strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), value)
    assert "nats" in kl.get_title()


def test_three_plots_are_written_at_report_size(tmp_path: Path, record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(12)]
    rows[3]["loss"] = None  # what was not finite
    paths = write_plots(rows, None, RunDir(tmp_path))
    assert [path.name for path in paths] == ["returns.png", "meta_update.png", "time.png"]
    for path in paths:
        picture = iio.imread(path)
        assert picture.shape[1] == 1080
        assert picture[..., :3].std() > 5, "the picture is blank"


def test_without_rows_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert write_plots([], None, RunDir(tmp_path)) == []
    assert not list(tmp_path.iterdir())


def test_smoothing_is_a_centered_mean_that_skips_gaps() -> None:
    values = np.array([0.0, 3.0, 6.0, np.nan, 12.0])
    np.testing.assert_allclose(smooth(values, window=3), [1.5, 3.0, 4.5, 9.0, 12.0])


def test_occasional_diagnostics_are_plotted_at_their_iterations(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(5)]
    snr, cosine = meta_update_figure(rows).axes[4:]
    for axes, value in ((snr, 3.0), (cosine, 0.75)):
        (line,) = axes.get_lines()
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0, 2, 4])
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), [value] * 3)


def row(steps: int, mean: float, actions: str = "stochastic") -> dict[str, Any]:
    return {"steps": steps, "actions": actions, "mean": mean, "low": mean - 3, "high": mean + 5}


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


def test_an_evaluation_is_plotted_without_metrics(tmp_path: Path) -> None:
    paths = write_plots([], {"rows": [row(0, 1.0)], "beside": {}}, RunDir(tmp_path))
    assert [path.name for path in paths] == ["evaluation.png"]
    assert iio.imread(paths[0])[..., :3].std() > 5
