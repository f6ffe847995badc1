"""Files are complete or absent, in a directory and behind fsspec's URLs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from maml_ray.common.safe_files import UnsuitableFile
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint, save_checkpoint
from maml_ray.persistence.storage import (
    LocalStorage,
    RemoteStorage,
    Storage,
    StorageError,
    is_same_storage,
    open_storage,
)
from tests.persistence.test_checkpoint_store import assert_equal, checkpoint


@pytest.fixture(params=["folder", "file://", "memory://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    kind = str(request.param)
    yield open_storage(str(tmp_path / "run") if kind == "folder" else f"{kind}{tmp_path}/run")
    if kind == "memory://":
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_files_are_written_read_listed_replaced_and_removed(storage: Storage) -> None:
    assert storage.names("a") == []
    storage.write("a/one", b"1")
    storage.write("a/two", b"2")
    storage.write("a/b/deep", b"3")
    assert storage.names("a") == ["b", "one", "two"]
    assert storage.names("a/b") == ["deep"]
    storage.write("a/one", b"another")
    assert storage.read("a/one") == b"another"
    storage.remove("a/one")
    storage.remove("a/b")
    storage.remove("a/nothing")
    assert storage.names("a") == ["two"]
    with pytest.raises(FileNotFoundError):
        storage.read("a/one")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a//b", "", "a\\..\\b"])
def test_names_that_lead_out_are_refused(storage: Storage, name: str) -> None:
    for action in (storage.read, storage.names, storage.remove):
        with pytest.raises(ValueError, match="leads out"):
            action(name)
    with pytest.raises(ValueError, match="leads out"):
        storage.write(name, b"")


def test_a_file_that_is_too_large_is_not_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("file", b"12345")
    assert storage.read("file", 5) == b"12345"
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", None)
    with pytest.raises(UnsuitableFile, match=r"^it has 5 bytes, and at most 4 are read$"):
        storage.read("file", 4)


def test_checkpoints_can_be_stored_in_any_of_them(storage: Storage) -> None:
    for iteration in (1, 2, 3):
        save_checkpoint(storage, checkpoint(iteration), keep=2)
    assert storage.names("checkpoints") == ["00000002", "00000003"]
    assert_equal(load_newest_checkpoint(storage)[0], checkpoint(3))


def test_a_failed_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("file", b"before")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        storage.write("file", b"after")
    assert storage.read("file") == b"before"
    assert storage.names(".") == ["file"]


@pytest.mark.parametrize("url", ["nonsense://bucket/runs", "sqs://x"])
def test_an_unknown_protocol_is_an_error(url: str) -> None:
    with pytest.raises(StorageError, match="no storage at"):
        open_storage(url)


@pytest.mark.parametrize("url", ["file://mnt/shared", "local://runs", "file://"])
def test_a_file_url_with_a_relative_path_is_an_error(url: str) -> None:
    with pytest.raises(StorageError, match=r"write (file|local):///"):
        open_storage(url)


def test_programs_that_share_a_directory_and_a_process_id_do_not_mix_their_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one writes the same file while ours is under way."""
    ours, theirs = LocalStorage(tmp_path), LocalStorage(tmp_path)
    sync, inside = os.fsync, [False]

    def fsync(descriptor: int) -> None:
        if not inside[0]:
            inside[0] = True
            theirs.write("file", b"theirs, which is longer")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    ours.write("file", b"ours")
    assert ours.read("file") == b"ours"
    assert ours.names(".") == ["file"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("runs/a", "runs/b/../a", True),
        ("/runs/a", "file:///runs/a/", True),
        ("memory://runs/a", "memory://runs/a/", True),
        ("memory://runs/a", "memory://runs/b", False),
        ("/runs/a", "memory://runs/a", False),
    ],
)
def test_two_names_of_the_same_storage(one: str, other: str, same: bool) -> None:
    assert is_same_storage(open_storage(one), open_storage(other)) is same


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(StorageError, match=r"pip install 'maml-ray\[s3\]'"):
        RemoteStorage("s3://bucket/runs")


def test_a_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, never = open_storage("memory://silent"), threading.Event()
    assert isinstance(storage, RemoteStorage)
    monkeypatch.setattr("maml_ray.persistence.storage.REQUEST_TIMEOUT_S", 0.05)
    monkeypatch.setattr(storage._files, "ls", lambda *args, **kwargs: never.wait())
    try:
        with pytest.raises(OSError, match=r"cannot list a in memory://silent: no answer within"):
            storage.names("a")
    finally:
        never.set()


def test_a_timeout_reported_by_the_server_keeps_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(*args: object, **kwargs: object) -> None:
        raise TimeoutError("the bucket is asleep")

    storage = open_storage("memory://slow")
    storage.write("a", b"")
    assert isinstance(storage, RemoteStorage)
    monkeypatch.setattr(storage._files, "cat_file", slow)
    with pytest.raises(OSError, match=r"cannot read a in memory://slow: the bucket is asleep"):
        storage.read("a")
