from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from maml_ray.common.errors import RunWarning
from maml_ray.config.loading import dump_settings, validate_settings
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.records import INCIDENTAL_KEYS, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.metrics_log import MetricsLog
from tests.full_disk import full_disk
from tests.memory import memory_below
from tests.reporting.conftest import MakeRecord

START = StartReport("run", 0, 2, "CPU, 2 threads", "127.0.0.1:6379", None)


def write(folder: RunDir, record: MakeRecord, first: int, last: int, **changes: float) -> None:
    log = MetricsLog(folder, first)
    log.on_start(START)
    for iteration in range(first, last):
        log.on_iteration(record(iteration, **changes))
    log.close()


def read_events(folder: RunDir) -> EventAccumulator:
    return EventAccumulator(str(folder.tensorboard)).Reload()


def points(folder: RunDir, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read_events(folder).Scalars(tag)]


def test_each_iteration_is_one_line_with_the_record(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 3)
    rows = read_metrics(folder.metrics)
    assert rows == [record(iteration).as_row() for iteration in range(3)]
    assert rows[2]["rest_s"] == pytest.approx(0.125 * 2.0)
    assert rows[2]["steps_per_second"] == pytest.approx(2000.0)


def test_a_line_is_on_disk_as_soon_as_its_iteration_is_over(
    tmp_path: Path, record: MakeRecord
) -> None:
    log = MetricsLog(RunDir(tmp_path))
    log.on_start(START)
    log.on_iteration(record(0))
    assert len(read_metrics(RunDir(tmp_path).metrics)) == 1
    log.close()


def test_what_is_not_finite_is_written_as_null(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 1, loss=float("nan"), gradient_norm=float("inf"))
    line = folder.metrics.read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert json.loads(line)["loss"] is None


def test_a_resumed_run_logs_each_iteration_once(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 5)
    with folder.metrics.open("a") as file:
        file.write('{"iteration": 5, "torn')
    write(folder, record, 3, 6, loss=0.5)
    rows = read_metrics(folder.metrics)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [-0.01] * 3 + [0.5] * 3
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    points = events.Scalars("4 losses/loss")
    assert [point.step for point in points] == [0, 1, 2, 3, 4, 5]
    assert [point.value for point in points] == pytest.approx([-0.01] * 3 + [0.5] * 3)


def test_a_run_goes_on_from_a_checkpoint_that_is_ahead_of_the_metrics(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 3)
    write(folder, record, 5, 7)  # lines 3 and 4 were lost with the machine
    write(folder, record, 6, 8)
    assert [row["iteration"] for row in read_metrics(folder.metrics)] == [0, 1, 2, 5, 6, 7]


def test_a_run_that_starts_over_shows_no_curve_twice(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 2)
    write(folder, record, 0, 3, loss=0.5)
    assert len(read_metrics(folder.metrics)) == 3
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(p.step, p.value) for p in events.Scalars("4 losses/loss")] == [
        (0, 0.5),
        (1, 0.5),
        (2, 0.5),
    ]


def test_tensorboard_shows_a_run_that_is_not_over(tmp_path: Path, record: MakeRecord) -> None:
    log = MetricsLog(RunDir(tmp_path), 4)
    log.on_start(START)
    log.on_event("rollout-1 was replaced")
    log.on_iteration(record(4))
    events = EventAccumulator(str(RunDir(tmp_path).tensorboard))
    events.Reload()
    (point,) = events.Scalars("5 time/steps_per_second")
    assert (point.step, point.value) == (4, pytest.approx(2000.0))
    (event,) = events.Tensors("events/text_summary")
    assert event.step == 4
    assert event.tensor_proto.string_val == [b"rollout-1 was replaced"]
    log.close()
    log.close()


def test_the_age_of_the_last_checkpoint_is_logged_once_there_is_one(
    tmp_path: Path, record: MakeRecord
) -> None:
    log = MetricsLog(RunDir(tmp_path))
    log.on_start(START)
    for iteration, age in enumerate((None, 0.25, 7.5)):
        log.on_iteration(replace(record(iteration), checkpoint_age_s=age))
    log.close()
    rows = read_metrics(RunDir(tmp_path).metrics)
    assert [row["checkpoint_age_s"] for row in rows] == [None, 0.25, 7.5]
    assert "checkpoint_age_s" in INCIDENTAL_KEYS
    events = EventAccumulator(str(RunDir(tmp_path).tensorboard))
    events.Reload()
    points = events.Scalars("5 time/checkpoint_age_s")
    assert [(point.step, point.value) for point in points] == [(1, 0.25), (2, 7.5)]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"iteration": 0}'])
def test_a_damaged_line_is_left_out_named_and_cut_when_the_run_goes_on(
    tmp_path: Path, record: MakeRecord, line: str
) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 3)
    lines = folder.metrics.read_text().splitlines()
    folder.metrics.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with pytest.warns(RunWarning, match=rf"^line 2 of {folder.metrics} .* is left out"):
        write(folder, record, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the line has been cut
        assert [row["iteration"] for row in read_metrics(folder.metrics)] == [0, 2, 3, 4]


def test_metrics_out_of_order_are_sorted_and_the_later_row_counts(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder, again = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    write(folder, record, 0, 4)
    write(again, record, 2, 5, loss=0.5)
    folder.metrics.write_text(again.metrics.read_text() + folder.metrics.read_text())
    with pytest.warns(RunWarning, match=r"^line 4 \(and 3 more\) of .* is out of order"):
        rows = read_metrics(folder.metrics)
    assert [(row["iteration"], row["loss"]) for row in rows] == [
        *((iteration, -0.01) for iteration in (0, 1, 2, 3)),
        (4, 0.5),
    ]


def test_a_hole_in_the_metrics_is_passed_over_in_little_memory(
    tmp_path: Path, record: MakeRecord
) -> None:
    """Blocks that were never written are zeros, on one line with what follows them."""
    folder = RunDir(tmp_path)
    write(folder, record, 0, 3)
    size = folder.metrics.stat().st_size
    with folder.metrics.open("r+b") as file:
        file.truncate(size + 60_000_000)
    with pytest.warns(RunWarning, match="line 4"), memory_below(5_000_000):
        rows = read_metrics(folder.metrics)
    assert len(rows) == 3


def test_curves_go_on_when_a_full_disk_has_room_again(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    log = MetricsLog(folder)
    log.on_start(START)
    with full_disk() as disk:
        for iteration in range(9):
            disk.full = iteration in (3, 4, 8)
            log.on_iteration(record(iteration))
            log.on_event(f"event {iteration}")
        disk.full = False
        log.close()
    assert [row["iteration"] for row in read_metrics(folder.metrics)] == list(range(9))
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"tensors": 0})
    events.Reload()
    points = events.Scalars("1 returns by iteration/return_after")
    assert [(point.step, point.value) for point in points] == [(i, 12.0 * i) for i in range(9)]
    texts = [event.tensor_proto.string_val[0] for event in events.Tensors("events/text_summary")]
    assert texts == [f"event {iteration}".encode() for iteration in range(9)]


def test_a_run_fetched_from_storage_shows_its_whole_curves(
    tmp_path: Path, record: MakeRecord
) -> None:
    here, there = RunDir(tmp_path / "here"), RunDir(tmp_path / "there")
    here.path.mkdir()
    write(here, record, 0, 4)
    there.path.mkdir()
    there.metrics.write_bytes(here.metrics.read_bytes())
    write(there, record, 3, 6)
    events = EventAccumulator(str(there.tensorboard))
    events.Reload()
    points = events.Scalars("1 returns by iteration/return_after")
    assert [(point.step, point.value) for point in points] == [(i, 12.0 * i) for i in range(6)]
    assert len(events.Scalars("4 losses/gradient_snr")) == 3  # every other row has none


def test_tensorboard_opens_on_returns_and_shows_no_faults_where_there_were_none(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 2, speed_after=1.5)
    tags = sorted(read_events(folder).Tags()["scalars"])  # as TensorBoard sorts them
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in tags))
    assert groups == ["1 returns by iteration", "2 returns by env steps", "4 losses", "5 time"]
    assert tags[0] == "1 returns by iteration/return_after"
    keys = {tag.partition("/")[2] for tag in tags}
    assert keys <= set(record(0).as_row()), "a key of metrics.jsonl has one name"


def test_a_fault_is_shown_from_the_iteration_of_the_first_one(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 2)
    write(folder, record, 2, 4, discarded_episodes=3)
    write(folder, record, 4, 5)
    assert points(folder, "6 faults/discarded_episodes") == [(2, 3.0), (3, 3.0), (4, 0.0)]
    assert "6 faults/lost" not in read_events(folder).Tags()["scalars"]


def test_returns_are_shown_by_environment_steps_too(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 4)
    for key in ("return_before", "return_after"):
        by_iteration = points(folder, f"1 returns by iteration/{key}")
        by_steps = points(folder, f"2 returns by env steps/{key}")
        assert [value for _, value in by_steps] == [value for _, value in by_iteration]
        assert [step for step, _ in by_steps] == [4000, 8000, 12_000, 16_000]


@pytest.mark.parametrize("steps_per_iteration", [4000, 1])
def test_a_resumed_run_shows_each_point_by_environment_steps_once(
    tmp_path: Path, record: MakeRecord, steps_per_iteration: int
) -> None:
    folder = RunDir(tmp_path)
    for first, last in ((0, 6), (3, 8), (7, 9)):
        log = MetricsLog(folder, first)
        log.on_start(START)
        for iteration in range(first, last):
            total = steps_per_iteration * (iteration + 1)
            log.on_iteration(replace(record(iteration), total_env_steps=total))
        log.close()
    assert points(folder, "2 returns by env steps/return_after") == [
        (steps_per_iteration * (i + 1), 12.0 * i) for i in range(9)
    ]
    assert points(folder, "1 returns by iteration/return_after") == [
        (i, 12.0 * i) for i in range(9)
    ]


def test_a_fetched_run_that_was_evaluated_before_shows_its_whole_curves(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    rows = [json.dumps(record(i).as_row()) + "\n" for i in range(3)]
    folder.metrics.write_text("".join(rows))
    (folder.tensorboard / "evaluation").mkdir(parents=True)
    write(folder, record, 3, 5)
    assert len(read_events(folder).Scalars("4 losses/loss")) == 5


def test_hyperparameters_are_the_settings_that_affect_learning(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    settings = validate_settings({"run": {"seed": 7}, "outer": {"clip": 0.125}})
    folder.settings.write_text(dump_settings(settings))
    write(folder, record, 0, 1)
    content = read_events(folder).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    shown = parse_session_start_info_plugin_data(content).hparams
    assert shown["run.seed"].number_value == 7
    assert shown["outer.clip"].number_value == 0.125
    assert shown["inner.learn_inner_rates"].bool_value is False
    assert shown["task.name"].string_value == "half-cheetah-backward"
    assert not {"run.directory", "cluster.address", "faults.preemptions"} & set(shown)


def test_custom_charts_match_the_curves_that_they_show(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunDir(tmp_path)
    write(folder, record, 0, 1)
    events = read_events(folder)
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    curves = [
        [tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)]
        for chart in layout.category[0].chart
    ]
    assert [len(shown) for shown in curves] == [2, 2, 2, 4]
