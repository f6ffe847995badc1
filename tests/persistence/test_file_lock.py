"""The lock of a run directory, against live and killed processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from maml_ray.common.errors import RunDirError, TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.persistence.file_lock import LOCK, lock_run_dir
from maml_ray.runs.train import train
from tests.small_runs import run_of, settings

HOLDER = """
import subprocess, sys
from pathlib import Path
from maml_ray.persistence.file_lock import lock_run_dir
with lock_run_dir(Path(sys.argv[1])):
    {first}
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(folder: Path, first: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``folder`` until it is killed."""
    program = [sys.executable, "-c", HOLDER.format(first=first), str(folder)]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_directory_in_use_by_a_live_run_is_refused(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(RunDirError) as caught, lock_run_dir(tmp_path):
            pass
        message = str(caught.value)
        assert f"{tmp_path} is in use by a live run" in message
        assert f"pid {process.pid}" in message
        assert "stop it first, or choose another directory" in message
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_run_dir(tmp_path):  # nothing stale is left
            pass


def test_training_and_resuming_are_refused_on_a_live_run(tmp_path: Path) -> None:
    started = run_of(settings(), tmp_path / "started")
    for folder, arguments in (
        (started.path, {"resume": started.path}),
        (tmp_path / "new", {"run_dir": tmp_path / "new"}),
    ):
        with holder(folder), pytest.raises(RunDirError, match="in use by a live run"):
            train(settings(), **arguments)  # type: ignore[arg-type]


def test_child_processes_do_not_inherit_the_lock(tmp_path: Path) -> None:
    # Ray's workers may outlive the run that began them, by a little.
    child = "child = subprocess.Popen(['sleep', '60'], close_fds=False); print(child.pid)"
    program = [sys.executable, "-c", HOLDER.format(first=child), str(tmp_path)]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == "held\n"
            process.kill()
            process.wait()
            os.kill(pid, 0)  # the child lives
            with lock_run_dir(tmp_path):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not list(tmp_path.iterdir())
    with lock_run_dir(tmp_path / "c"):
        (tmp_path / "c" / "settings.yaml").write_text("")
    assert (tmp_path / "c" / "settings.yaml").exists()
    (tmp_path / "mine").mkdir()
    with lock_run_dir(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


class Arrived(Exception):
    """A signal has arrived."""


@contextmanager
def signal_at(line: int) -> Iterator[list[str]]:
    """Send a signal before the given of all Python lines that run inside; yield where, if any."""
    lines, where = count(), list[str]()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and next(lines) == line:
            where.append(f"{frame.f_code.co_qualname}, line {frame.f_lineno}")
            signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)


@pytest.fixture
def sigterm_raises() -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        raise Arrived

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_raises")
def test_a_signal_at_any_moment_leaves_neither_directory_nor_lock(tmp_path: Path) -> None:
    new, mine = tmp_path / "a" / "b", tmp_path / "mine"
    mine.mkdir()
    for path, line in ((path, line) for line in count() for path in (new, mine)):
        where: list[str] = []
        try:
            with signal_at(line) as where, lock_run_dir(path):
                pass
        except Arrived:
            assert where
        assert [each.name for each in tmp_path.iterdir()] == ["mine"], where
        with lock_run_dir(mine):  # nothing holds it
            pass
        if not where:
            break
    assert line > 50  # the lines of the locking itself


def test_an_exit_at_the_deadline_leaves_neither_directory_nor_lock(tmp_path: Path) -> None:
    first = f"from maml_ray.common.signals import force_exit; force_exit({signal.SIGTERM})"
    program = [sys.executable, "-c", HOLDER.format(first=first), str(tmp_path / "a" / "b")]
    assert subprocess.run(program, timeout=60).returncode == signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_the_lock_is_held_for_the_whole_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def training(*arguments: Any, **keywords: Any) -> None:
        with pytest.raises(RunDirError) as caught:
            train(settings(), run_dir=tmp_path / "run")
        seen.append(str(caught.value))
        raise TrainingFailed("far enough")

    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", training)
    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    with pytest.raises(TrainingFailed):
        train(settings(), run_dir=tmp_path / "run")
    assert f"pid {os.getpid()}" in seen[0]
    assert not (tmp_path / "run").exists()


def test_runs_of_the_same_second_get_different_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def training(settings: Settings, folder: Any, **keywords: Any) -> None:
        folder.settings.write_text("")
        folders.append(folder.path)
        raise TrainingFailed("far enough")

    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", training)
    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    monkeypatch.setattr("maml_ray.runs.train.time.strftime", lambda *_: "20260101-120000")
    for _ in range(3):
        with pytest.raises(TrainingFailed):
            train(settings(run={"directory": str(tmp_path)}))
    assert [path.name for path in folders] == [
        "small-20260101-120000",
        "small-20260101-120000-2",
        "small-20260101-120000-3",
    ]


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_a_lock_that_is_not_a_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / LOCK, tmp_path / "other"
    other.write_text("mine")
    if kind == "folder":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(other)
    else:
        os.mkfifo(lock)
    with (
        pytest.raises(RunDirError, match="cannot write to the run directory"),
        lock_run_dir(tmp_path),
    ):
        pass
    assert other.read_text() == "mine"


@pytest.mark.parametrize("note", ["", "[]", "{", "[" * 900, '{"host": 1}', "\x00\xff"])
def test_a_corrupt_lock_file_changes_only_the_message(tmp_path: Path, note: str) -> None:
    with holder(tmp_path):
        (tmp_path / LOCK).write_text(note)
        with (
            pytest.raises(RunDirError, match="a live run: stop it first"),
            lock_run_dir(tmp_path),
        ):
            pass


def test_without_locks_in_the_file_system_the_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), lock_run_dir(tmp_path):
        pass
