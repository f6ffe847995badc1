from __future__ import annotations

import io

import pytest
from rich.console import Console

from maml_ray.persistence.records import StartReport
from maml_ray.reporting.progress import (
    PlainProgress,
    TerminalProgress,
    TimeLeftEstimator,
    format_duration,
    format_iteration,
    format_time_shares,
    make_progress,
)
from tests.reporting.conftest import MakeRecord

START = StartReport("runs/x", 3, 2, "CPU, 2 threads", "127.0.0.1:6379", "http://127.0.0.1:8265")


def consoles() -> tuple[Console, Console]:
    return (
        Console(file=io.StringIO(), width=120),
        Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None),
    )


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_gets_a_display_and_a_file_gets_lines() -> None:
    plain, terminal = consoles()
    assert isinstance(make_progress(plain), PlainProgress)
    assert isinstance(make_progress(terminal), TerminalProgress)


def test_a_log_gets_one_line_per_iteration_with_all_metrics(record: MakeRecord) -> None:
    console, _ = consoles()
    progress = PlainProgress(console)
    progress.on_start(START)
    for iteration in range(3):
        progress.on_iteration(record(iteration))
    progress.on_event("rollout-1 was replaced")
    progress.close()
    lines = text(console).splitlines()
    assert lines[-2] == (
        "iteration  3/20  return before    20.0 after    24.0  loss -0.0100  2,000 steps/s"
        "  collect 50% adapt 12% learn 25% rest 12%  elapsed 0:06 left 0:34"
    )
    assert lines[-1] == "rollout-1 was replaced"
    for word in ("runs/x", "2 rollout actors", "CPU, 2 threads", "http://127.0.0.1:8265", "at 3"):
        assert any(word in line.replace("iteration 3", "at 3") for line in lines), word


def test_speeds_follow_returns_if_the_task_reports_them(record: MakeRecord) -> None:
    shown = record(2, speed_before=-0.125, speed_after=2.5)
    assert "before    20.0 after    24.0  m/s -0.12  2.50  loss" in format_iteration(shown, 0.0)
    assert "m/s" not in format_iteration(record(2), 0.0)
    _, console = consoles()
    progress = TerminalProgress(console)
    progress.on_start(START)
    progress.on_iteration(shown)
    progress.close()
    assert "before adaptation    -0.12   after     2.50" in text(console)


def test_stale_data_are_reported(record: MakeRecord) -> None:
    shown = record(2, staleness=1)
    assert "rest 12%  data 1 version behind  elapsed" in format_iteration(shown, 0.0)
    assert "behind" not in format_iteration(record(2), 0.0)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    progress = TerminalProgress(console)
    progress.on_start(START)
    progress.on_iteration(shown)
    progress.close()
    assert "million so far  data 1 version behind" in text(console)


def test_the_display_shows_the_metrics_and_restores_the_terminal(record: MakeRecord) -> None:
    _, console = consoles()
    progress = TerminalProgress(console)
    progress.on_start(START)
    progress.on_iteration(record(9))
    progress.on_iteration(record(4, return_after=5.0))
    progress.on_event("a [word] in brackets")
    progress.close()
    shown = text(console)
    for word in ("90.0", "108.0", "2,000 env steps/s", "collect 50%", "a [word] in brackets"):
        assert word in shown
    assert "best after    108.0" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is hidden still"


def test_the_display_keeps_to_a_terminal_of_80_characters(record: MakeRecord) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    progress = TerminalProgress(console)
    progress.on_start(START)
    assert "iteration 4 is under way" in text(console)
    progress.on_iteration(record(9, return_before=-1234.5, return_after=-1200.25))
    progress.close()
    lines = text(console).rpartition("\x1b[?25h")[0].splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["return", "learning", "speed", "time"]


def test_time_left_is_the_recent_mean_without_the_first_slow_iteration(record: MakeRecord) -> None:
    left = TimeLeftEstimator()
    assert left.update(record(0, wall_s=100.0)) == pytest.approx(100.0 * 19)
    assert left.update(record(1, wall_s=2.0)) == pytest.approx(2.0 * 18)
    assert left.update(record(2, wall_s=4.0)) == pytest.approx(3.0 * 17)
    assert left.update(record(19, wall_s=4.0)) == 0.0


def test_shares_are_of_wall_time(record: MakeRecord) -> None:
    assert format_time_shares(record(0)) == "collect 50% adapt 12% learn 25% rest 12%"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03")]
)
def test_format_duration(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown
