"""Test the arguments of ``maml_ray.train``, and users' observers, without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import maml_ray
from maml_ray.common.errors import Interrupted, ResourceError
from maml_ray.config.loading import dump_settings, load_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from tests.runs.fake_training import FakeTraining, training_made_up
from tests.small_runs import settings


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTraining]:
    with training_made_up(monkeypatch, tmp_path) as made_up:
        yield made_up


SMALL = settings(run={"iterations": 3}, evaluation={"tasks": 1, "episodes": 1, "video": False})


def train(*arguments: Any, **keywords: Any) -> str:
    """Train into ``run`` and return what is printed."""
    output = io.StringIO()
    console = Console(file=output, width=200)
    maml_ray.train(*arguments, **keywords, run_dir="run", console=console)
    return output.getvalue()


def recorded() -> Settings:
    return load_settings(RunDir(Path("run")).settings, recorded=True)


def test_iterations_and_seed_replace_those_of_the_settings() -> None:
    train(SMALL, iterations=2, seed=7)
    assert recorded() == SMALL.replace({"run.iterations": 2, "run.seed": 7})
    assert len(read_metrics(RunDir(Path("run")).metrics)) == 2


@pytest.mark.parametrize("as_path", [str, Path])
def test_settings_come_from_a_file(as_path: type) -> None:
    Path("small.yml").write_text(dump_settings(SMALL))
    train(as_path("small.yml"))
    assert recorded() == SMALL


def test_settings_come_from_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(chosen: Settings, *arguments: Any, **keywords: Any) -> None:
        started.append(chosen)
        raise Interrupted(15)

    started: list[Settings] = []
    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", stop)
    with pytest.raises(Interrupted):
        train("direction", iterations=5)
    assert started == [load_settings(preset="direction", overrides=["run.iterations=5"])]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("directon", r"'directon' is not known; did you mean 'direction'\?.*presets: .*direction"),
        ("nowhere.yaml", "cannot read the settings file nowhere.yaml"),
        (5, "settings = 5 is not allowed: pass Settings, the name of a preset or the path"),
    ],
)
def test_a_wrong_first_argument_is_one_sentence(argument: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        train(argument)


def test_wrong_iterations_are_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"run\.iterations = 0 is not allowed"):
        train(SMALL, iterations=0)


class Notes(Observer):
    """Note every call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, report: StartReport) -> None:
        self.calls.append(f"start at {report.first_iteration}")

    def on_iteration(self, record: IterationRecord) -> None:
        self.calls.append(f"iteration {record.iteration}")

    def close(self) -> None:
        self.calls.append("close")


class Failing(Notes):
    """Fail in some methods."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        for method in methods:
            setattr(self, method, self.fail)

    def fail(self, *arguments: Any) -> None:
        self.calls.append("failed")
        raise KeyError("no such figure")


def test_observers_receive_the_run_in_order() -> None:
    notes = Notes()
    train(SMALL, observers=[notes])
    assert notes.calls == ["start at 0", "iteration 0", "iteration 1", "iteration 2", "close"]


def test_observers_are_closed_when_the_run_ends_early(training: FakeTraining) -> None:
    def stop(iteration: int) -> None:
        if iteration == 1:
            raise Interrupted(15)

    training.before = stop
    notes = Notes()
    with pytest.raises(Interrupted):
        train(SMALL, observers=[notes])
    assert notes.calls == ["start at 0", "iteration 0", "close"]


def test_an_observer_that_fails_is_reported_once_and_left_out() -> None:
    failing, notes = Failing("on_iteration", "close"), Notes()
    printed = train(SMALL, observers=[failing, notes])
    assert failing.calls == ["start at 0", "failed", "failed"], "one iteration, and close"
    assert notes.calls[-2:] == ["iteration 2", "close"]
    assert len(read_metrics(RunDir(Path("run")).metrics)) == 3
    (line,) = [line for line in printed.splitlines() if "Failing" in line]
    assert line.startswith(
        "warning: observer Failing failed in on_iteration and is left out from here on; the run "
        "continues: KeyError: 'no such figure' (test_train.py, line "
    )


def test_an_observer_is_not_closed_if_the_run_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ResourceError("no Ray")

    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", fail)
    notes = Notes()
    with pytest.raises(ResourceError):
        train(SMALL, observers=[notes])
    assert notes.calls == []


@pytest.mark.parametrize(
    ("observers", "sentence"),
    [
        (Notes(), r"observers = <.*Notes.* is not allowed: write .*observers=\[MyObserver\(\)\]"),
        ([Notes], r"observers has the class Notes: pass an instance, Notes\(\)"),
        ([print], "observers has <built-in function print>: pass instances of subclasses of"),
    ],
)
def test_wrong_observers_are_one_sentence(observers: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        train(SMALL, observers=observers)
    assert not Path("run").exists()
