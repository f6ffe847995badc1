"""Test sessions, and the fallback directory for a storage that fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from maml_ray.common.errors import Interrupted, RunDirError, Superseded, TrainingFailed
from maml_ray.common.signals import StopRequest
from maml_ray.config.loading import load_settings
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.lease import FencedStorage, acquire_lease
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.runs.session import open_checkpoint_writer, open_session
from tests.runs.fake_training import checkpoint_of
from tests.small_runs import settings


class Full(LocalStorage):
    """A full disk."""

    def write(self, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_existing_files_in_the_fallback_directory_are_left_alone(
    tmp_path: Path,
) -> None:
    fallback, folder = tmp_path / "fallback", RunDir(tmp_path / "run")
    (fallback / "run").mkdir(parents=True)
    (fallback / "run" / "settings.yaml").write_text("another's")
    run_settings = settings(faults={"fallback_directory": str(fallback)})
    attempt = open_session(folder, run_settings).lease
    folder.metrics.write_text("{}\n")
    with open_checkpoint_writer(
        run_settings, folder, FencedStorage(Full(folder.path), attempt)
    ) as writer:
        for iteration in (1, 2):
            writer.submit(checkpoint_of(run_settings, iteration))
            with pytest.raises(TrainingFailed, match=f"{fallback}/run-2$") as raised:
                writer.flush(0.0)
            assert raised.value.run == str(fallback / "run-2")
    assert sorted(path.name for path in fallback.iterdir()) == ["run", "run-2"]
    assert (fallback / "run" / "settings.yaml").read_text() == "another's"
    saved = RunDir(fallback / "run-2")
    assert load_newest_checkpoint(LocalStorage(saved.path))[0].iteration == 2
    assert load_settings(saved.settings).run.storage is None
    assert saved.metrics.read_text() == "{}\n"


def test_a_temporary_fallback_directory_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, run_settings = RunDir(tmp_path / "run"), settings()
    attempt = open_session(folder, run_settings).lease
    with open_checkpoint_writer(
        run_settings, folder, FencedStorage(Full(folder.path), attempt)
    ) as writer:
        writer.submit(checkpoint_of(run_settings, 1))
        with pytest.raises(TrainingFailed, match="what was in memory is in"):
            writer.flush(0.0)
    (base,) = tmp_path.glob("maml_ray-fallback-*")
    assert base.stat().st_mode & 0o777 == 0o700
    assert load_newest_checkpoint(LocalStorage(base / "run"))[0].iteration == 1


def test_a_new_run_whose_start_failed_can_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for name, storage in (("one", None), ("two", str(tmp_path / "kept"))):
        run_settings, folder = settings(run={"storage": storage}), RunDir(tmp_path / name)
        with monkeypatch.context() as patches:
            patches.setattr("maml_ray.runs.session.dump_settings", full)
            patches.setattr("maml_ray.persistence.run_storage.dump_settings", full)
            with pytest.raises(RunDirError, match="No space left"):
                open_session(folder, run_settings, new=True)
        assert not folder.settings.exists()
        open_session(folder, run_settings, new=True)


def test_parameters_are_saved_even_if_the_metrics_cannot_be_read(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    run_settings = settings(faults={"fallback_directory": str(tmp_path / "fallback")})
    attempt = open_session(folder, run_settings).lease
    folder.metrics.mkdir()
    with open_checkpoint_writer(
        run_settings, folder, FencedStorage(Full(folder.path), attempt)
    ) as writer:
        writer.submit(checkpoint_of(run_settings, 1))
        with pytest.raises(TrainingFailed, match="what was in memory is in"):
            writer.flush(0.0)
    assert load_newest_checkpoint(LocalStorage(tmp_path / "fallback" / "run"))[0].iteration == 1


def test_open_session_starts_a_new_attempt(tmp_path: Path) -> None:
    run_settings = settings(run={"storage": str(tmp_path / "kept")})
    folder, kept = RunDir(tmp_path / "run"), LocalStorage(tmp_path / "kept" / "run")
    first = open_session(folder, run_settings, new=True)
    assert kept.names(".") == ["attempts", "settings.yaml"]
    with pytest.raises(RunDirError, match="belongs to another run"):
        open_session(RunDir(tmp_path / "again" / "run"), run_settings, new=True)
    assert not (tmp_path / "again").exists()
    second = open_session(folder, run_settings)
    assert (first.lease.attempt, second.lease.attempt) == (1, 2)
    with pytest.raises(Superseded):
        first.write("a", b"")


def test_a_change_of_storage_ends_older_attempts_in_both(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    before, after = (settings(run={"storage": str(tmp_path / name)}) for name in "ab")
    older = open_session(folder, before)
    newer = open_session(folder, after, checkpoint_of(after, 3))
    assert newer.lease.attempt == 2
    with pytest.raises(Superseded, match="attempt 2 of this run"):
        older.write("a", b"")
    assert acquire_lease(LocalStorage(tmp_path / "b" / "run")).attempt == 3


def test_a_newer_attempt_ends_a_wait() -> None:
    stop = StopRequest()
    stop.check()
    stop.supersede(Superseded("attempt 2 of this run began"))
    with pytest.raises(Superseded):
        stop.check()
    assert not issubclass(Superseded, Interrupted | TrainingFailed)  # which save what they have
