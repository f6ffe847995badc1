"""Test resuming runs: from any storage, on any machine, and never as another run."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from maml_ray.common.errors import Interrupted, RunDirError, RunWarning, Superseded
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint, read_best_score
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import JOB_VARIABLE, RunDir, resolve_base_directory
from maml_ray.persistence.storage import LocalStorage, Storage, open_storage
from maml_ray.runs import tune
from maml_ray.runs.evaluate import RunResult
from maml_ray.runs.train import train as train_with_console
from tests.bad_input.command_line import fingerprint, run
from tests.runs.fake_training import FakeTraining, checkpoint_of
from tests.small_runs import quick_pictures, settings


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTraining]:
    made_up = FakeTraining()
    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", made_up)
    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    with quick_pictures():
        yield made_up


def make_settings(
    iterations: int = 3, storage: Path | str | None = None, **sections: Any
) -> Settings:
    evaluation = {"tasks": 1, "episodes": 1, "video": False}
    run = {
        "iterations": iterations,
        "storage": None if storage is None else str(storage),
        **sections.get("run", {}),
    }
    return settings(**{**sections, "run": run, "evaluation": evaluation})


def train(*arguments: Any, **keywords: Any) -> RunResult:
    return train_with_console(*arguments, **keywords, console=Console(quiet=True))


def printed_by(*arguments: Any, **keywords: Any) -> str:
    """Return what a run prints."""
    output = io.StringIO()
    train_with_console(*arguments, **keywords, console=Console(file=output, width=200))
    return output.getvalue()


def logged_iterations(path: Path) -> list[int]:
    return [row["iteration"] for row in read_metrics(RunDir(path).metrics)]


def newest(place: Path | str) -> int:
    return load_newest_checkpoint(open_storage(place))[0].iteration


def stop_before(iteration: int, number: int = 15) -> Any:
    def before(reached: int) -> None:
        if reached == iteration:
            raise Interrupted(number)

    return before


def test_a_run_resumes_from_its_old_storage_and_writes_to_the_new_one(
    training: FakeTraining, tmp_path: Path
) -> None:
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "run"
    train(make_settings(3, a), run_dir=folder)
    train(make_settings(5, b), resume=folder)
    assert training.spans == [(0, 1), (3, 2)]
    assert (newest(a / "run"), newest(b / "run")) == (3, 5)
    best = read_best_score(LocalStorage(b / "run"))
    assert best is not None
    assert best.iteration == 1
    assert load_settings(folder / "settings.yaml").run.storage == str(b)
    assert load_settings(b / "run" / "settings.yaml") == load_settings(folder / "settings.yaml")
    train(None, resume=folder)  # done: uses the recorded storage
    train(make_settings(6), resume=folder)  # moves into the run directory itself
    assert training.spans[-1][0] == 5
    assert (newest(b / "run"), newest(folder)) == (5, 6)
    assert logged_iterations(folder) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("failing", ["write", "remove"])
def test_a_storage_that_is_not_writable_is_rejected_before_training(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """It is readable, so only writing finds the problem, both for new and for resumed runs."""
    begun, other = tmp_path / "begun", tmp_path / "other"
    train(make_settings(2), run_dir=begun)

    def full(storage: LocalStorage, name: str, *content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalStorage, failing, full)
    settings = make_settings(4, tmp_path / "kept")
    refusal = rf"cannot write to run\.storage = {tmp_path}/kept \(No space left on device\)"
    for place in ({"run_dir": other}, {"resume": begun}):
        with pytest.raises(RunDirError, match=refusal):
            train(settings, **place)
    assert len(training.spans) == 1
    assert not other.exists()
    assert load_settings(begun / "settings.yaml").run.storage is None


def test_the_checkpoint_is_in_a_new_storage_before_the_settings_name_it(
    training: FakeTraining, tmp_path: Path
) -> None:
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "run"
    train(make_settings(3, a), run_dir=folder)
    training.before = stop_before(3)
    with pytest.raises(Interrupted):
        train(make_settings(5, b), resume=folder)
    assert load_settings(folder / "settings.yaml").run.storage == str(b)
    shutil.rmtree(a)
    training.before = stop_before(-1)
    train(None, resume=folder)
    assert training.spans[-1][0] == 3
    assert newest(b / "run") == 5


def test_the_newest_checkpoint_of_both_storages_counts(
    training: FakeTraining, tmp_path: Path
) -> None:
    """An aborted move leaves an older checkpoint behind."""
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "run"
    train(make_settings(2, a), run_dir=folder)
    shutil.copytree(a, b)
    train(make_settings(4, a), resume=folder)
    train(make_settings(5, b), resume=folder)
    assert [first for first, _ in training.spans] == [0, 2, 4]
    assert newest(b / "run") == 5


def test_a_failing_old_storage_is_reported_if_the_new_one_has_the_run(
    training: FakeTraining, tmp_path: Path
) -> None:
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "run"
    train(make_settings(2, a), run_dir=folder)
    shutil.copytree(a, b)
    shutil.rmtree(a)
    a.write_text("no folder")
    with pytest.warns(RunWarning, match=f"cannot read the checkpoints in {a}/run"):
        train(make_settings(3, b), resume=folder)
    assert training.spans[-1][0] == 2
    shutil.rmtree(b / "run" / "checkpoints")
    (folder / "settings.yaml").write_text(
        (folder / "settings.yaml").read_text().replace(f"storage: {b}", f"storage: {a}")
    )
    with pytest.raises(RunDirError, match="cannot read the checkpoints"):
        train(make_settings(4, tmp_path / "c"), resume=folder)


def test_an_empty_storage_of_a_run_that_has_iterations_is_rejected(
    training: FakeTraining, tmp_path: Path
) -> None:
    """An unmounted share is an empty directory."""
    train(make_settings(2, tmp_path / "a"), run_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    for storage in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(RunDirError, match=r"is empty, but the run .* mounted"):
            train(make_settings(4, storage), resume=tmp_path / "run")
    assert not list((tmp_path / "a").iterdir())
    assert len(training.spans) == 1


def test_a_run_that_has_lost_its_checkpoints_does_not_start_over(
    training: FakeTraining, tmp_path: Path
) -> None:
    chosen, folder = make_settings(4), RunDir(tmp_path / "run")
    training.before = stop_before(2)
    with pytest.raises(Interrupted):
        train(chosen, run_dir=folder.path)
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(Interrupted):  # as far as is known, it was killed before its first one
        train(chosen, resume=folder.path)
    assert training.spans == [(0, 1), (0, 2)]
    text = folder.metrics.read_text()
    folder.metrics.write_text(text.replace('"checkpoint_age_s": null', '"checkpoint_age_s": 1.0'))
    before = fingerprint(folder.path)
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(RunDirError, match=r"lost its checkpoints: .* finished 2 iterations"):
        train(chosen, resume=folder.path)
    after = fingerprint(folder.path)
    assert all(after[name] == before[name] for name in after if name != ".lock")


def test_a_trial_of_a_sweep_is_told_of_its_checkpoints_alike(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.runs.tune.train_on_ray", training)
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen, folder = make_settings(3, run={"directory": "~/runs"}), tmp_path / "runs" / "small"
    tune._train_trial(chosen, lambda row: None)
    (folder / "checkpoints" / "00000003" / "manifest.json").write_text("{")
    with pytest.warns(RunWarning, match="checkpoint 2 is used"):
        tune._train_trial(chosen, lambda row: None)
    assert training.spans == [(0, 1), (2, 2)]
    metrics = folder / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().replace('"checkpoint_age_s": null', '"checkpoint_age_s": 1')
    )
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(RunDirError, match="lost its checkpoints"):
        tune._train_trial(chosen, lambda row: None)


def test_a_run_with_a_torn_line_of_metrics_goes_on(training: FakeTraining, tmp_path: Path) -> None:
    train(make_settings(3, tmp_path / "kept"), run_dir=tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[0] + lines[1][:30] + "\n" + lines[2])
    piece = tmp_path / "kept" / "run" / "metrics" / "000000.jsonl"
    piece.write_text(piece.read_text()[:-9] + "\n")
    with pytest.warns(RunWarning) as caught:
        train(make_settings(5), resume=tmp_path / "run")
    told = {str(warning.message).split(" of ")[1].split()[0] for warning in caught}
    assert told == {str(metrics), str(piece)}
    assert training.spans[-1][0] == 3
    assert logged_iterations(tmp_path / "run") == [0, 1, 2, 3, 4]


def test_a_new_run_in_a_storage_that_holds_one_is_rejected_before_training(
    training: FakeTraining, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    train(make_settings(2, kept), run_dir=tmp_path / "one" / "run")
    before = fingerprint(kept)
    with pytest.raises(RunDirError, match=f"{kept}/run already holds a run: .*--resume"):
        train(make_settings(2, kept), run_dir=tmp_path / "two" / "run")
    (kept / "run" / "settings.yaml").unlink()
    with pytest.raises(RunDirError, match="holds checkpoints of another run"):
        train(make_settings(2, kept), run_dir=tmp_path / "two" / "run")
    with pytest.raises(RunDirError, match="holds checkpoints of another run"):
        train(make_settings(2), run_dir=kept / "run")
    assert len(training.spans) == 1
    assert {k: v for k, v in before.items() if "settings" not in k} == fingerprint(kept)
    assert not (tmp_path / "two").exists()


def test_a_storage_that_holds_another_run_is_rejected(
    training: FakeTraining, tmp_path: Path
) -> None:
    train(make_settings(2, tmp_path / "a"), run_dir=tmp_path / "one" / "run")
    train(make_settings(4, tmp_path / "b", run={"seed": 1}), run_dir=tmp_path / "two" / "run")
    before = fingerprint(tmp_path / "b")
    with pytest.raises(RunDirError, match=r"holds another run .*run\.seed.* another run.storage"):
        train(make_settings(4, tmp_path / "b"), resume=tmp_path / "one" / "run")
    assert fingerprint(tmp_path / "b") == before


def test_a_url_is_not_mistaken_for_a_directory_of_the_same_name(
    training: FakeTraining, tmp_path: Path
) -> None:
    train(make_settings(2, tmp_path / "a"), run_dir=tmp_path / "elsewhere" / "run")
    train(make_settings(2, tmp_path / "b", run={"seed": 1}), run_dir=tmp_path / "runs" / "run")
    with pytest.raises(RunDirError, match=f"stored in {tmp_path}/b/run, not in file://"):
        train(None, resume=f"file://{tmp_path}/a/run")
    assert len(training.spans) == 2


@pytest.mark.parametrize("url", ["memory://", "memory://x", "file:///", "file:///x"])
def test_a_url_without_a_run_is_rejected(training: FakeTraining, url: str) -> None:
    with pytest.raises(RunDirError, match=r"there is no run at"):
        train(None, resume=url)


def test_a_moved_run_resumes_at_its_new_location(training: FakeTraining, tmp_path: Path) -> None:
    train(make_settings(2, tmp_path / "a"), run_dir=tmp_path / "elsewhere" / "run")
    shutil.move(tmp_path / "a", tmp_path / "b")
    url = f"file://{tmp_path}/b/run"
    assert run("train", "--resume", url, "--set", "run.iterations=3").code == 0
    assert training.spans[-1] == (2, 2)
    assert newest(tmp_path / "b" / "run") == 3
    assert not (tmp_path / "a").exists()


def test_alternating_machines_lose_no_metrics(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.persistence.run_storage._ROWS_PER_FILE", 3)
    kept = tmp_path / "kept"
    one, two = ({"directory": str(tmp_path / name), "name": "shared"} for name in ("one", "two"))
    for iterations, machine in ((2, one), (8, two), (10, one), (11, two)):
        train(make_settings(iterations, kept, run=machine), resume="auto")
        assert logged_iterations(Path(machine["directory"]) / "shared") == list(range(iterations))
    assert [first for first, _ in training.spans] == [0, 2, 8, 10]
    pieces = sorted((kept / "shared" / "metrics").iterdir())
    told = [line for piece in pieces for line in piece.read_text().splitlines()]
    assert [len(pieces), len(told)] == [4, 11]
    (kept / "shared" / "metrics" / ".000000.jsonl.4711.partial").write_text('{"torn\n' * 2)
    shutil.rmtree(tmp_path / "one")
    train(make_settings(12, kept, run=one), resume="auto")
    assert logged_iterations(tmp_path / "one" / "shared") == list(range(12))


@pytest.mark.parametrize("storage", [None, "kept"])
def test_the_same_command_starts_resumes_and_finishes(
    training: FakeTraining, tmp_path: Path, storage: str | None
) -> None:
    where = make_settings(4, storage, run={"name": "mine"})
    folder = RunDir(tmp_path / "runs" / "mine")
    training.before = stop_before(2)
    with pytest.raises(Interrupted):
        train(where, resume="auto")
    assert not folder.evaluation.exists()
    training.before = stop_before(-1)
    first = train(where, resume="auto")
    assert training.spans == [(0, 1), (2, 2)]
    evaluated = folder.evaluation.read_bytes()
    result = train(where, resume="auto")
    assert result.evaluation.measurements == first.evaluation.measurements
    assert result.results["task"] == "point-navigation"
    assert "is done: it has 4 iterations" in printed_by(where, resume="auto")
    folder.evaluation.unlink()
    train(where, resume="auto")
    assert folder.evaluation.read_bytes() == evaluated
    folder.report.unlink()
    train(where, resume="auto")
    assert folder.report.exists()
    assert len(training.spans) == 2
    assert os.listdir(tmp_path / "runs") == ["mine"]
    train(make_settings(5, storage, run={"name": "mine"}), resume="auto")
    assert training.spans[2:] == [(4, 3)]


def test_an_evaluation_of_fewer_iterations_is_repeated(
    training: FakeTraining, tmp_path: Path
) -> None:
    train(make_settings(2), resume="auto")
    before = (tmp_path / "runs" / "small" / "evaluation.json").read_bytes()

    def die(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maml_ray.runs.train.evaluate_run", die)
        with pytest.raises(KeyboardInterrupt):
            train(make_settings(4), resume="auto")
    assert train(make_settings(4), resume="auto").evaluation is not None
    assert (tmp_path / "runs" / "small" / "evaluation.json").read_bytes() != before
    assert len(training.spans) == 2


def test_the_same_command_on_another_machine_resumes_from_storage(
    training: FakeTraining, tmp_path: Path
) -> None:
    kept = f"file://{tmp_path}/kept"
    for name, iterations in (("one", 2), ("two", 4)):
        machine = {"directory": str(tmp_path / name)}
        train(make_settings(iterations, kept, run=machine), resume="auto")
    assert training.spans == [(0, 1), (2, 2)]
    ours, theirs = (
        load_newest_checkpoint(LocalStorage(path))[0].learner.parameters
        for path in (tmp_path / "kept" / "small",) * 2
    )
    wanted = checkpoint_of(make_settings(4), 4).learner.parameters
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(ours[name], wanted[name])
    assert logged_iterations(tmp_path / "two" / "small") == [0, 1, 2, 3]


def test_other_settings_under_the_same_name_are_rejected(
    training: FakeTraining, tmp_path: Path
) -> None:
    train(make_settings(2, tmp_path / "kept"), resume="auto")
    for directory in ("runs", "other"):
        other = make_settings(2, tmp_path / "kept", run={"seed": 9, "directory": directory})
        with pytest.raises((SettingsError, RunDirError), match=r"run\.seed = 9, but"):
            train(other, resume="auto")
    assert len(training.spans) == 1


def test_from_the_command_line(training: FakeTraining, tmp_path: Path) -> None:
    small = ["--preset", "point-navigation", "--resume", "auto", "--set", "run.iterations=2"]
    small += ["--set", "evaluation.tasks=1", "--set", "evaluation.episodes=1"]
    small += ["--set", "evaluation.video=false", "--set", "run.name=mine"]
    first, second = run("train", *small), run("train", *small)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "runs/mine is done: it has 2 iterations" in second.out
    refused = run("train", "--resume", "auto", "--run-dir", "here")
    assert refused.code == 2
    assert "leave --run-dir out" in refused.err
    assert len(training.spans) == 1


def test_an_older_attempt_stops_and_has_written_nothing_since(
    training: FakeTraining, tmp_path: Path
) -> None:
    """Another machine starts the same run while this one is at iteration 2."""
    kept = tmp_path / "kept"
    seen: list[dict[str, str]] = []

    def another(iteration: int) -> None:
        if iteration == 2 and not seen:
            seen.append({})
            machine = {"directory": str(tmp_path / "another")}
            train(make_settings(4, kept, run=machine), resume="auto")
            seen[0] = fingerprint(kept)

    training.before = another
    with pytest.raises(Superseded, match=r"attempt 2 of this run began on .*: this one, attempt 1"):
        train(make_settings(4, kept), resume="auto")
    assert fingerprint(kept) == seen[0]
    assert newest(kept / "small") == 4
    assert training.spans == [(0, 1), (2, 2)]
    assert {row["attempt"] for row in read_metrics(tmp_path / "another/small/metrics.jsonl")} == {
        1,
        2,
    }
    assert not (tmp_path / "runs" / "small" / "evaluation.json").exists()


def test_being_superseded_has_an_exit_code_of_its_own(
    training: FakeTraining, tmp_path: Path
) -> None:
    def superseded(iteration: int) -> None:
        raise Superseded("attempt 2 of this run began: this one, attempt 1, stops\n")

    training.before = superseded
    outcome = run("train", "--run-dir", "run", "--preset", "point-navigation")
    assert outcome.code == 3
    assert outcome.err == "maml-ray: attempt 2 of this run began: this one, attempt 1, stops\\n\n"


def test_a_jobs_relative_run_directory_is_in_the_users_home() -> None:
    home, job = Path("/home/me"), {JOB_VARIABLE: "{}"}
    assert resolve_base_directory(Path("runs"), job, home) == Path("/home/me/maml_ray/runs")
    assert resolve_base_directory(Path("/mnt/runs"), job, home) == Path("/mnt/runs")
    assert resolve_base_directory(Path("runs"), {}, home) == Path("runs")


def test_a_job_prints_its_run_directory_and_finds_it_again(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    told = printed_by(make_settings(2, "kept"), resume="auto")
    there = tmp_path / "home" / "maml_ray"
    assert told.count(f"using run.directory = {there}/runs") == 1
    assert (there / "runs" / "small" / "settings.yaml").exists()
    assert newest(there / "kept" / "small") == 2
    monkeypatch.chdir("/")
    train(make_settings(3, "kept"), resume="auto")
    assert training.spans[-1] == (2, 2)


@pytest.mark.parametrize("place", ["here", "a$x"])
def test_a_relative_storage_is_found_from_any_directory(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    here = tmp_path / place
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("x", raising=False)
    train(make_settings(2, "kept"), run_dir="small")
    monkeypatch.chdir("/")
    path = str(here / "small").replace("$", "$$")
    assert run("train", "--resume", path, "--set", "run.iterations=3").code == 0
    assert training.spans[-1] == (2, 2)
    away = {"directory": str(tmp_path / "other")}
    kept = str(here / "kept").replace("$", "$$")
    train(make_settings(4, kept, run=away), resume="auto")  # fetched
    assert training.spans[-1] == (3, 3)
    train(make_settings(5, kept, run=away), resume=tmp_path / "other" / "small")
    assert training.spans[-1] == (4, 4)


class Refusing(LocalStorage):
    """A storage that rejects writes."""

    def write(self, name: str, content: bytes) -> None:
        raise OSError(30, "Read-only file system")


def test_a_run_of_another_length_keeps_the_annealing_that_it_started_with(
    training: FakeTraining, tmp_path: Path
) -> None:
    """Extended twice, shortened, unchanged; on another machine, too."""
    kept, folder = tmp_path / "kept", tmp_path / "small"
    line = "outer.learning_rate is annealed over 2 iterations, as when the run started, and stays"
    assert line not in printed_by(make_settings(2, kept), run_dir=folder)
    for iterations, count in ((4, 1), (6, 1), (6, 0), (5, 1)):
        told = printed_by(make_settings(iterations, kept), resume=folder)
        assert told.count(line) == count
        recorded = load_settings(folder / "settings.yaml")
        assert (recorded.run.iterations, recorded.annealed_over) == (iterations, 2)
    assert load_settings(kept / "small" / "settings.yaml").annealed_over == 2
    there = make_settings(8, kept, run={"directory": str(tmp_path / "there")})
    assert line in printed_by(there, resume="auto")
    assert load_settings(tmp_path / "there" / "small" / "settings.yaml").annealed_over == 2
    wrong = make_settings(8, kept, outer={"anneal_iterations": 8})
    with pytest.raises(SettingsError, match=r"anneal_iterations = 8, but the run .* has 2: a res"):
        train(wrong, resume=folder)


def test_a_storage_that_is_not_writable_is_reported_before_the_first_iteration(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_refusing(place: str) -> Storage:
        return Refusing(Path(place))

    monkeypatch.setattr("maml_ray.persistence.run_storage.open_storage", open_refusing)
    with pytest.raises(RunDirError, match=r"cannot write to .*kept/run: Read-only"):
        train(make_settings(2, tmp_path / "kept"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
