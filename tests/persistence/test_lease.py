"""Of two programs that carry on one run, only the newer one writes, in any order of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from maml_ray.common.errors import RunDirError, Superseded
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_newest_checkpoint,
    save_checkpoint,
)
from maml_ray.persistence.lease import FencedStorage, Lease, acquire_lease, verify_lease
from maml_ray.persistence.storage import MAX_READ_BYTES, LocalStorage, Storage, open_storage
from tests.persistence.test_checkpoint_store import assert_equal, checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::maml_ray.common.errors.RunWarning")


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    yield open_storage(tmp_path if request.param == "folder" else f"memory://{tmp_path}")
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/", recursive=True)


class Interleaved:
    """A storage in which something else happens just before the k-th operation.

    Names written or removed afterwards are recorded.
    """

    def __init__(self, storage: Storage, k: int, happen: Callable[[], object]) -> None:
        self._storage, self._left, self._happen = storage, k, happen
        self.since: list[str] = []

    @property
    def happened(self) -> bool:
        return self._left <= 0

    def __str__(self) -> str:
        return str(self._storage)

    def write(self, name: str, content: bytes) -> None:
        self._step(name)
        self._storage.write(name, content)

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        self._step()
        return self._storage.read(name, max_bytes)

    def names(self, folder: str) -> list[str]:
        self._step()
        return self._storage.names(folder)

    def remove(self, name: str) -> None:
        self._step(name)
        self._storage.remove(name)

    def _step(self, changed: str | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            self._happen()
        if self.happened and changed is not None:
            self.since.append(changed)


def test_attempts_are_counted_and_only_the_newest_writes(storage: Storage) -> None:
    first = acquire_lease(storage)
    second = acquire_lease(storage)
    assert (first.attempt, second.attempt) == (1, 2)
    FencedStorage(storage, second).write("a", b"second")
    older = FencedStorage(storage, first)
    for act in (lambda: older.write("a", b"first"), lambda: older.remove("a")):
        with pytest.raises(Superseded) as caught:
            act()
    assert storage.read("a") == b"second"
    content = json.loads(storage.read(second.name))
    assert str(caught.value) == (
        f"attempt 2 of this run began on {content['host']} at {content['since']}: "
        "this one, attempt 1, stops and has written nothing since"
    )
    assert (older.read("a"), older.names("attempts")) == (b"second", storage.names("attempts"))


def test_a_newer_attempt_at_any_moment_of_a_save_stops_it(
    tmp_path: Path,
) -> None:
    """For each k: a newer attempt begins before the k-th operation of the older one's save."""
    scores = [CheckpointScore(1, 1.0), CheckpointScore(2, 2.0), CheckpointScore(3, 3.0)]
    for k in range(1, 100):
        storage = LocalStorage(tmp_path / str(k))
        acquire_lease(storage)
        for iteration in (1, 2, 3):
            save_checkpoint(storage, checkpoint(iteration), keep=2, scores=scores[: iteration - 1])
        lease = acquire_lease(storage)
        newer: list[Lease] = []

        def begin(storage: Storage = storage, newer: list[Lease] = newer) -> None:
            newer.append(acquire_lease(storage))

        between = Interleaved(storage, k, begin)
        try:
            save_checkpoint(FencedStorage(between, lease), checkpoint(4), keep=2, scores=scores)
        except Superseded:
            assert between.happened
        if not between.happened:
            assert k > 15
            return
        assert len(between.since) <= 1, f"{between.since} after operation {k}"
        # Whatever was under way, the newer attempt goes on as if nothing had been.
        assert load_newest_checkpoint(storage)[0].iteration in (3, 4)
        fenced = FencedStorage(storage, newer[0])
        for iteration in (4, 5):
            save_checkpoint(fenced, checkpoint(iteration), keep=2, scores=scores)
        assert_equal(load_newest_checkpoint(storage)[0], checkpoint(5))
        assert storage.names("checkpoints") == ["00000003", "00000004", "00000005", "best.json"]
    raise AssertionError("saving never ended")


@pytest.mark.parametrize("token", ["0" * 16, "f" * 16])
def test_of_two_attempts_that_overlap_in_any_way_exactly_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """The other one takes the same number, with a lower or a higher token, in between."""
    for k in range(1, 20):
        storage = LocalStorage(tmp_path / str(k))
        acquire_lease(storage)
        tokens = iter(["8" * 16] * 5)
        monkeypatch.setattr(
            "maml_ray.persistence.lease.secrets.token_hex", lambda _, t=tokens: next(t)
        )

        def other(storage: Storage = storage) -> None:
            others = [name for name in storage.names("attempts") if "8888" not in name]
            number = int(others[-1].split("-")[0]) + 1  # as if it had been listed before ours
            storage.write(Lease(number, token).name, b"{}")

        between = Interleaved(storage, k, other)
        lease = acquire_lease(between)
        monkeypatch.undo()
        if not between.happened:
            assert k == 4  # a listing, the lease, a listing
            return
        rival = next(
            Lease(int(name[:6]), token)
            for name in storage.names("attempts")
            if name.endswith(f"{token}.json")
        )
        alive = 0
        for one in (lease, rival):
            try:
                verify_lease(storage, one)
                alive += 1
            except Superseded:
                pass
        assert alive == 1, f"before operation {k}"
    raise AssertionError("acquiring the lease never ended")


def test_a_new_run_is_refused_if_there_is_an_attempt_and_leaves_no_lease(
    storage: Storage,
) -> None:
    acquire_lease(storage, new=True)
    before = storage.names("attempts")
    with pytest.raises(RunDirError, match=r"belongs to another run: attempt 1 .* --resume"):
        acquire_lease(storage, new=True)
    assert storage.names("attempts") == before


def test_of_two_new_runs_that_begin_at_the_same_moment_one_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    rival = Lease(1, "f" * 16)
    between = Interleaved(storage, 2, lambda: storage.write(rival.name, b"{}"))
    with pytest.raises(RunDirError, match="belongs to another run"):
        acquire_lease(between, new=True)
    assert storage.names("attempts") == [rival.name.rpartition("/")[2]]
    verify_lease(storage, rival)


def test_a_storage_that_has_lost_the_lease_is_not_written_to(storage: Storage) -> None:
    """A share that is not mounted any more is an empty folder."""
    lease = acquire_lease(storage)
    storage.remove(lease.name)
    with pytest.raises(OSError, match="emptied or unmounted"):
        FencedStorage(storage, lease).write("a", b"")
    assert storage.names(".") in ([], ["attempts"])


def test_a_failing_storage_is_not_taken_for_a_newer_attempt(tmp_path: Path) -> None:
    class Away(LocalStorage):
        def names(self, folder: str) -> list[str]:
            raise OSError(5, "Input/output error")

    lease = acquire_lease(LocalStorage(tmp_path))
    with pytest.raises(OSError, match="Input/output"):
        verify_lease(Away(tmp_path), lease)


@pytest.mark.parametrize(
    "name", [".000009-ffffffffffffffff.json.partial", "9.json", "000009-x.json", "readme"]
)
def test_other_files_are_not_taken_for_leases(storage: Storage, name: str) -> None:
    lease = acquire_lease(storage)
    storage.write(f"attempts/{name}", b"")
    verify_lease(storage, lease)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 900, b"\xff", b'{"host": 1}'])
def test_a_corrupt_lease_changes_only_the_message(storage: Storage, content: bytes) -> None:
    lease = acquire_lease(storage)
    storage.write(Lease(7, "0" * 16).name, content)
    with pytest.raises(Superseded, match="attempt 7 of this run began: this one, attempt 1, stops"):
        verify_lease(storage, lease)
    assert acquire_lease(storage).attempt == 8


def test_old_leases_are_removed_and_numbers_continue(storage: Storage) -> None:
    for number in range(1, 26):
        assert acquire_lease(storage).attempt == number
    kept = storage.names("attempts")
    assert [int(name[:6]) for name in kept] == list(range(16, 26))
    assert acquire_lease(storage, above=40).attempt == 41
