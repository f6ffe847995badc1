"""A program that dies at any moment of writing a checkpoint leaves one that can be loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_newest_checkpoint,
    save_checkpoint,
)
from maml_ray.persistence.storage import MAX_READ_BYTES, LocalStorage, Storage
from tests.persistence.test_checkpoint_store import assert_equal, checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::maml_ray.common.errors.RunWarning")

KEEP = 2
SCORES = [CheckpointScore(1, 1.0), CheckpointScore(2, 2.0), CheckpointScore(3, 3.0)]


class Killed(BaseException):
    """The program dies: nothing catches it, nothing is cleaned up."""


class Mortal:
    """A storage whose program dies at its k-th operation.

    A file exists completely or not at all; with ``torn``, half of it is written.
    """

    def __init__(self, storage: Storage, lives: int, torn: bool) -> None:
        self._storage, self._torn = storage, torn
        self.lives = lives

    def __str__(self) -> str:
        return str(self._storage)

    def write(self, name: str, content: bytes) -> None:
        self._live(lambda: self._storage.write(name, content[: len(content) // 2]))
        self._storage.write(name, content)

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        self._live()
        return self._storage.read(name, max_bytes)

    def names(self, folder: str) -> list[str]:
        self._live()
        return self._storage.names(folder)

    def remove(self, name: str) -> None:
        self._live(lambda: self._storage.remove(f"{name}/manifest.json"))
        self._storage.remove(name)

    def _live(self, half: Callable[[], None] = lambda: None) -> None:
        self.lives -= 1
        if self.lives == 0:
            if self._torn:
                half()
            raise Killed


def history(storage: Storage) -> None:
    """Three checkpoints, each better than the one before it."""
    for iteration in (1, 2, 3):
        save_checkpoint(storage, checkpoint(iteration), keep=KEEP, scores=SCORES[: iteration - 1])


def assert_survived(storage: Storage, k: int) -> None:
    newest, _ = load_newest_checkpoint(storage)
    assert newest.iteration in (3, 4), f"killed at operation {k}"
    assert_equal(newest, checkpoint(newest.iteration))
    # The next program continues as if nothing had happened.
    save_checkpoint(storage, checkpoint(4), keep=KEEP, scores=SCORES)
    save_checkpoint(storage, checkpoint(5), keep=KEEP, scores=SCORES)
    assert storage.names("checkpoints") == ["00000003", "00000004", "00000005", "best.json"]
    assert_equal(load_newest_checkpoint(storage)[0], checkpoint(5))


@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_every_operation_of_a_storage(tmp_path: Path, torn: bool) -> None:
    for k in range(1, 100):
        storage = LocalStorage(tmp_path / str(k))
        history(storage)
        mortal = Mortal(storage, k, torn)
        try:
            save_checkpoint(mortal, checkpoint(4), keep=KEEP, scores=SCORES)
        except Killed:
            assert_survived(storage, k)
        else:
            # a read, 3 files, a listing, best.json read and written, 3 reads, a removal
            assert k == 12
            return
    raise AssertionError("saving never ended")


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of system calls that the program has left to live."""
    left = [0]
    dead = [False]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            if dead[0]:  # what runs after the death of a program does nothing
                raise Killed
            if left[0]:
                left[0] -= 1
                if left[0] == 0:
                    dead[0] = True
                    raise Killed
            return call(*args, **kwargs)

        return maybe

    with monkeypatch.context() as patches:
        for name in ("fsync", "replace", "mkdir", "open", "unlink", "rmdir", "scandir"):
            patches.setattr(os, name, counted(getattr(os, name)))

        def live(count: int) -> None:
            left[0], dead[0] = count, False

        yield live


def test_killed_at_every_system_call_of_a_folder(
    tmp_path: Path, deadly: Callable[[int], None]
) -> None:
    for k in range(1, 200):
        storage = LocalStorage(tmp_path / str(k))
        deadly(0)
        history(storage)
        deadly(k)
        try:
            save_checkpoint(storage, checkpoint(4), keep=KEEP, scores=SCORES)
        except Killed:
            deadly(0)
            assert_survived(storage, k)
            shutil.rmtree(storage.path)
        else:
            assert k > 15
            return
    raise AssertionError("saving never ended")
