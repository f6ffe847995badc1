from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from maml_ray.persistence.records import StartReport
from maml_ray.reporting.progress import (
    NotebookProgress,
    PlainProgress,
    TerminalProgress,
    TimeLeftEstimator,
    make_progress,
    status_line,
)
from maml_ray.reporting.progress_text import (
    format_duration,
    format_iteration,
    format_time_shares,
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
    progress.on_start(replace(START, connect_s=4.21, actors_s=3.9))
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
    assert "resuming    at iteration 3, after 4.2 s for Ray and 3.9 s for the actors" in lines
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
    assert "running iteration 4" in text(console)
    progress.on_iteration(record(9, return_before=-1234.5, return_after=-1200.25))
    assert "running iteration 11" in text(console)
    progress.close()
    lines = text(console).rpartition("\x1b[?25h")[0].splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["return", "learning", "speed", "time"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_shows_the_status_only_after_a_silence(record: MakeRecord) -> None:
    console, _ = consoles()
    clock = Clock()
    progress = PlainProgress(console, clock)
    printed: list[str] = []

    def after(seconds: float) -> str:
        clock.now += seconds
        progress.tick()
        printed[:] = text(console).splitlines()
        return printed[-1] if printed else ""

    progress.on_status("starting Ray")
    assert after(0.9) == ""
    assert after(0.1) == "starting Ray (1 s)", "the first status comes soon"
    assert after(3.9) == "starting Ray (1 s)"
    progress.on_status("starting Ray")  # said again: the seconds go on
    assert after(0.1) == "starting Ray (5 s)"
    progress.on_start(START)
    assert after(4.0) == "running iteration 4 (4 s)"
    progress.on_iteration(record(3))
    before = after(4.0)
    assert before.startswith("iteration  4/20")
    assert after(50.0) == before, "an iteration prints a line when it ends"
    assert after(6.0) == "running iteration 5 (60 s)"
    progress.on_iteration(record(19))
    last = after(1000.0)
    assert last.startswith("iteration 20/20"), "the run is over"
    progress.close()


def test_the_status_on_a_terminal_disappears_and_metrics_stay(record: MakeRecord) -> None:
    _, console = consoles()
    with status_line(console, "loading [PyTorch]"):
        pass
    shown, _, end = text(console).rpartition("loading [PyTorch]")
    assert shown
    assert end.startswith("\r\x1b[2K"), "the line is erased"
    progress = TerminalProgress(console)
    progress.on_start(START)
    progress.on_iteration(record(19))
    progress.on_status("evaluating: task 3 of 5")
    progress.close()
    last = text(console).rpartition("running iteration")[2]
    assert "best after" in last
    assert "evaluating" not in last.rpartition("best after")[2]


def test_a_notebook_has_one_output_that_is_updated(
    record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs()
    monkeypatch.setattr("IPython.display.display", outputs.display)
    console = Console(file=io.StringIO(), force_jupyter=True)
    clock = Clock()
    progress = make_progress(console)
    assert isinstance(progress, NotebookProgress)
    progress = NotebookProgress(console, clock)
    progress.on_status("starting <Ray>")
    assert "starting &lt;Ray&gt;" in outputs.shown["text/html"]
    progress.on_start(START)
    for iteration in range(20):
        progress.on_iteration(record(iteration))
    for number in range(9):
        progress.on_event(f"event {number}")
    clock.now += 5.0
    progress.on_status("evaluating: task 1 of 5")
    for shown in outputs.shown.values():
        assert "runs/x" in shown
        assert "event 8" in shown
        assert "event 3" not in shown, "the latest events only"
        assert "evaluating: task 1 of 5" in shown
    assert 'max="20" value="20"' in outputs.shown["text/html"]
    assert "228.0" in outputs.shown["text/html"]
    assert re.search(r"pre-wrap\">before adaptation {2,}", outputs.shown["text/html"])
    progress.close()
    assert "evaluating" not in outputs.shown["text/html"]
    assert outputs.count == 1


class Outputs:
    """Stand in for the outputs of a notebook's cell."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: dict[str, str] = {}

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Outputs:
        self.count += 1
        self.update(data, raw=raw)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.shown = data


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
