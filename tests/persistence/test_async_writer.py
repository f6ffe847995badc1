"""Training survives failures of its storage, and nothing that can be saved is lost."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maml_ray.common.errors import Interrupted, Superseded, TrainingFailed
from maml_ray.persistence.async_writer import MAX_PAUSE_S, MIN_PAUSE_S, AsyncCheckpointWriter
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_newest_checkpoint,
    read_best_score,
)
from maml_ray.persistence.lease import FencedStorage, acquire_lease
from maml_ray.persistence.storage import LocalStorage
from tests.persistence.test_checkpoint_store import assert_equal, checkpoint

WAIT_S = 30.0


class Disk(LocalStorage):
    """A directory that a test can make full or slow."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.full = False
        self.may_write = threading.Event()
        self.may_write.set()
        self.reached = threading.Event()

    def write(self, name: str, content: bytes) -> None:
        self.reached.set()
        assert self.may_write.wait(WAIT_S)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, content)


class Pauses:
    """Replaces waiting: records the durations, and lets the test end each pause."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.started = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def __call__(self, event: threading.Event, seconds: float) -> None:
        self.lengths.append(seconds)
        self.started.release()
        assert self.ended.acquire(timeout=WAIT_S)

    def run_attempts(self, count: int = 1) -> None:
        """Let the writer retry ``count`` times; return when it pauses again."""
        for _ in range(count):
            self.ended.release()
            self.wait_for_pause()

    def wait_for_pause(self) -> None:
        assert self.started.acquire(timeout=WAIT_S)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "run")


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


Opener = Callable[..., AsyncCheckpointWriter]


@pytest.fixture
def open_writer(disk: Disk, pauses: Pauses, tmp_path: Path) -> Iterator[Opener]:
    opened: list[AsyncCheckpointWriter] = []

    def opener(max_missed: int = 2, slow_write_s: float = 1e9) -> AsyncCheckpointWriter:
        def save_fallback(point: object) -> str:
            assert not (tmp_path / "elsewhere").exists(), "once is enough"
            (tmp_path / "elsewhere").write_text(str(getattr(point, "iteration", None)))
            return "a safe place"

        opened.append(
            AsyncCheckpointWriter(
                disk,
                keep=2,
                max_missed=max_missed,
                save_fallback=save_fallback,
                wait=pauses,
                slow_write_s=slow_write_s,
            )
        )
        return opened[-1]

    yield opener
    disk.may_write.set()
    for writer in opened:
        pauses.ended.release()
        writer.close()
    assert "checkpoints" not in {thread.name for thread in threading.enumerate()}


def test_checkpoints_are_written_and_the_best_is_recorded(open_writer: Opener, disk: Disk) -> None:
    writer = open_writer()
    assert writer.age_s is None
    for iteration in (1, 2, 3):
        writer.submit(checkpoint(iteration))
        writer.record_score(CheckpointScore(iteration, float(iteration == 1)))
        writer.flush(WAIT_S)
    assert writer.last_saved is not None
    assert writer.last_saved.iteration == 3
    assert_equal(load_newest_checkpoint(disk)[0], checkpoint(3))
    assert read_best_score(disk) == CheckpointScore(1, 1.0)
    assert writer.poll_messages() == []


def test_the_age_is_of_the_newest_saved_checkpoint_and_not_of_a_pending_one(
    open_writer: Opener, disk: Disk, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("maml_ray.persistence.async_writer.time.time", lambda: now[0])
    writer = open_writer()
    writer.submit(checkpoint(1))
    writer.flush(WAIT_S)
    now[0] += 7.0
    assert writer.age_s == 7.0
    disk.full = True
    writer.submit(checkpoint(2))
    pauses.wait_for_pause()
    now[0] += 5.0
    assert writer.age_s == 12.0
    disk.full = False
    pauses.ended.release()
    writer.flush(WAIT_S)
    assert writer.age_s == 0.0
    now[0] -= 100.0  # the clock has been set back
    assert writer.age_s == 0.0


def test_a_full_disk_is_reported_once_and_retried_with_growing_pauses(
    open_writer: Opener, disk: Disk, pauses: Pauses
) -> None:
    writer = open_writer()
    disk.full = True
    writer.submit(checkpoint(1))
    pauses.wait_for_pause()
    pauses.run_attempts(9)
    assert pauses.lengths == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, MAX_PAUSE_S] + [MAX_PAUSE_S] * 2
    (message,) = writer.poll_messages()
    assert "No space left on device" in message
    assert "training goes on" in message
    disk.full = False
    pauses.ended.release()
    writer.flush(WAIT_S)
    (message,) = writer.poll_messages()
    assert "written to" in message
    assert "again" in message
    assert_equal(load_newest_checkpoint(disk)[0], checkpoint(1))


def test_checkpoints_replaced_while_the_disk_is_full_are_missed_and_the_newest_is_written(
    open_writer: Opener, disk: Disk, pauses: Pauses
) -> None:
    writer = open_writer()
    disk.full = True
    writer.submit(checkpoint(1))
    pauses.wait_for_pause()
    writer.submit(checkpoint(2))
    writer.submit(checkpoint(3))
    assert writer.num_missed == 2
    disk.full = False
    pauses.ended.release()
    writer.flush(WAIT_S)
    assert writer.num_missed == 0
    assert disk.names("checkpoints") == ["00000003"]


def test_too_many_missed_in_a_row_end_the_run_and_save_it_to_the_fallback(
    open_writer: Opener, disk: Disk, pauses: Pauses, tmp_path: Path
) -> None:
    writer = open_writer(max_missed=2)
    disk.full = True
    for iteration in (1, 2, 3):
        writer.submit(checkpoint(iteration))
        if iteration == 1:
            pauses.wait_for_pause()
        writer.poll_messages()
    writer.submit(checkpoint(4))
    with pytest.raises(
        TrainingFailed, match=r"3 checkpoints.*No space.*allows 2; .*a safe place"
    ) as raised:
        writer.poll_messages()
    assert raised.value.run == "a safe place"
    assert (tmp_path / "elsewhere").read_text() == "4"
    writer.flush(0.0)  # it is safe there: the run may end


def test_a_slow_disk_does_not_block_and_counts_as_failing_if_it_stays_slow(
    open_writer: Opener, disk: Disk
) -> None:
    writer = open_writer(max_missed=1, slow_write_s=0.0)
    disk.may_write.clear()
    writer.submit(checkpoint(1))
    assert disk.reached.wait(WAIT_S)
    writer.submit(checkpoint(2))  # returns although the disk does not
    assert writer.num_missed == 1
    assert any("taken more than" in message for message in writer.poll_messages())
    writer.submit(checkpoint(3))
    with pytest.raises(TrainingFailed, match="a safe place"):
        writer.poll_messages()


def test_slow_but_not_too_slow_is_not_reported(open_writer: Opener, disk: Disk) -> None:
    writer = open_writer(max_missed=0)
    disk.may_write.clear()
    for iteration in (1, 2, 3):
        writer.submit(checkpoint(iteration))
        assert disk.reached.wait(WAIT_S)
    assert (writer.num_missed, writer.poll_messages()) == (0, [])
    disk.may_write.set()
    writer.flush(WAIT_S)
    assert_equal(load_newest_checkpoint(disk)[0], checkpoint(3))


def test_a_last_checkpoint_that_cannot_be_written_in_time_goes_to_the_fallback(
    open_writer: Opener, disk: Disk, tmp_path: Path
) -> None:
    writer = open_writer()
    disk.may_write.clear()
    writer.submit(checkpoint(9))
    with pytest.raises(TrainingFailed, match=r"within 0 s .*a safe place"):
        writer.flush(0.0)
    assert (tmp_path / "elsewhere").read_text() == "9"


def test_at_the_end_a_failing_storage_is_retried_without_long_pauses(
    open_writer: Opener, disk: Disk, pauses: Pauses
) -> None:
    writer = open_writer()
    disk.full = True
    writer.submit(checkpoint(1))
    pauses.wait_for_pause()
    pauses.run_attempts(6)
    assert pauses.lengths[-1] == 32.0
    with pytest.raises(TrainingFailed):
        writer.flush(0.0)
    pauses.run_attempts(2)
    assert pauses.lengths[-2:] == [MIN_PAUSE_S, MIN_PAUSE_S]


def test_waiting_for_the_last_checkpoint_is_abandoned_on_request(
    open_writer: Opener, disk: Disk, tmp_path: Path
) -> None:
    def check() -> None:
        raise Interrupted(15)

    writer = open_writer()
    disk.may_write.clear()
    writer.submit(checkpoint(1))
    with pytest.raises(Interrupted):
        writer.flush(1e9, check)
    assert not (tmp_path / "elsewhere").exists()


def test_a_newer_attempt_ends_it_and_nothing_is_written_anywhere(
    disk: Disk, tmp_path: Path
) -> None:
    def save_fallback(point: object) -> str:
        raise AssertionError("the newer attempt has it all")

    reported: list[Superseded] = []
    writer = AsyncCheckpointWriter(
        FencedStorage(disk, acquire_lease(disk)),
        keep=2,
        max_missed=0,
        save_fallback=save_fallback,
        on_superseded=reported.append,
    )
    writer.submit(checkpoint(1))
    writer.flush(WAIT_S)
    acquire_lease(disk)
    for iteration in (2, 3, 4):
        writer.submit(checkpoint(iteration))
        with pytest.raises(Superseded, match="this one, attempt 1, stops"):
            writer.flush(WAIT_S)
        with pytest.raises(Superseded):
            writer.poll_messages()
    writer.close()
    assert disk.names("checkpoints") == ["00000001"]
    assert len(reported) == 1
