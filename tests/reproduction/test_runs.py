from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import SettingsError
from maml_ray.persistence.run_dir import RunDir
from tests.reproduction import runs
from tests.reproduction.__main__ import main, parse_seeds
from tests.reproduction.conftest import EXPERIMENT, MakeRun
from tests.reproduction.experiments import EXPERIMENTS, Experiment, select
from tests.reproduction.runs import CommandFailed, complete, few_episodes_file, run_folder

Commands = list[tuple[str, ...]]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that would have been run."""
    given: Commands = []
    monkeypatch.setattr(runs, "_maml_ray", lambda folder, *arguments: given.append(arguments))
    monkeypatch.setattr(
        runs, "_evaluate_few", lambda folder, path: given.append(("few", str(folder)))
    )
    return given


def evaluation_of(folder: RunDir) -> tuple[str, ...]:
    protocol = ("--steps", "3", "--tasks", "40", "--episodes", "20", "--no-record")
    return ("evaluate", str(folder), *protocol)


def test_a_new_run_is_trained_with_the_experiments_settings_and_evaluated(
    commands: Commands, tmp_path: Path
) -> None:
    complete(tmp_path / "new", EXPERIMENT, 1)
    folder = run_folder(tmp_path / "new", EXPERIMENT, 1)
    file = tmp_path / "new" / "tiny-seed1.yaml"
    assert commands == [
        ("train", str(file), "--run-dir", str(folder)),
        evaluation_of(folder),
        ("few", str(folder)),
    ]
    assert load_settings(file) == EXPERIMENT.settings(1)


@pytest.mark.parametrize("finished", [0, 3, 4], ids=["unsaved", "interrupted", "not evaluated"])
def test_an_interrupted_run_is_resumed(
    commands: Commands, make_run: MakeRun, tmp_path: Path, finished: int
) -> None:
    folder = make_run(finished=finished, value=None)
    complete(tmp_path, EXPERIMENT, 0)
    assert commands[0] == ("train", "--resume", str(folder))
    assert len(commands) == 3


def spoil_full(folder: RunDir) -> None:
    results = json.loads(folder.evaluation.read_text())
    folder.evaluation.write_text(json.dumps({**results, "tasks": 2}))


def spoil_steps(folder: RunDir) -> None:
    results = json.loads(folder.evaluation.read_text())
    rows = [row for row in results["rows"] if row["steps"] < 3]
    folder.evaluation.write_text(json.dumps({**results, "rows": rows}))


@pytest.mark.parametrize("spoil", [spoil_full, spoil_steps])
def test_a_trained_run_is_only_evaluated_with_what_is_missing(
    commands: Commands, make_run: MakeRun, tmp_path: Path, spoil: Callable[[RunDir], None]
) -> None:
    folder = make_run()
    spoil(folder)
    complete(tmp_path, EXPERIMENT, 0)
    assert commands == [evaluation_of(folder)]
    few_episodes_file(folder).unlink()
    commands.clear()
    make_run(seed=1)
    few_episodes_file(run_folder(tmp_path, EXPERIMENT, 1)).unlink()
    complete(tmp_path, EXPERIMENT, 1)
    assert commands == [("few", str(run_folder(tmp_path, EXPERIMENT, 1)))]


def test_a_finished_run_is_skipped_and_this_is_said(
    commands: Commands, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()
    complete(tmp_path, EXPERIMENT, 0)
    assert commands == []
    assert capsys.readouterr().out == (
        f"{folder} is trained: skipped\n{folder} is evaluated: skipped\n"
    )


def test_a_failed_command_shows_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nseq 1 50\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(CommandFailed, match=r"tiny-seed0.log:\n31\n32\n(.+\n)+50$"):
        complete(tmp_path, EXPERIMENT, 0)
    program.write_text("#!/bin/sh\nexit 130\n")
    with pytest.raises(SystemExit, match="130"):
        complete(tmp_path, EXPERIMENT, 0)


def test_the_other_runs_are_done_if_one_cannot_be(
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiments = (Experiment("future", "not-yet", ("direction",), seeds=(0,)), EXPERIMENT)
    monkeypatch.setattr("tests.reproduction.experiments.EXPERIMENTS", experiments)
    assert main(["--runs", str(tmp_path), "--output", str(tmp_path)]) == 1
    assert [each[0] for each in commands] == ["train", "evaluate", "few"] * 2
    assert "future, seed 0: run.preset = 'not-yet' is not known" in capsys.readouterr().err
    assert "tiny, seed 1: not trained" in (tmp_path / "table.md").read_text()
    commands.clear()
    assert main(["--report", "--runs", str(tmp_path), "--output", str(tmp_path)]) == 0
    assert commands == []


def test_the_first_seed_of_every_experiment_comes_first() -> None:
    names = [experiment.name for experiment in EXPERIMENTS]
    chosen = select(["direction", "direction-oracle", "direction-anil"], None)
    assert [(experiment.name, seed) for experiment, seed in chosen] == [
        ("direction", 0),
        ("direction-anil", 0),
        ("direction-oracle", 0),
        ("direction", 1),
        ("direction-anil", 1),
        ("direction", 2),
        ("direction-anil", 2),
    ]
    assert [seed for _, seed in select(["direction", "direction-oracle"], (4, 7))] == [4, 4, 7, 7]
    assert {experiment.name for experiment, _ in select([], None)} == set(names)
    with pytest.raises(ValueError, match="'directions' is not an experiment: choose from"):
        select(["directions"], None)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("1", (0,)), ("0,2", (0, 2)), ("2,", (2,))]
)
def test_seeds_are_a_number_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "a", "-1", "1,,2", ",", "1.5", "²"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write a number of seeds"):
        parse_seeds(text)


def test_a_budget_becomes_iterations_and_none_keeps_the_presets() -> None:
    budget = Experiment("x", "direction", ("direction",), 1_000_000)
    assert budget.settings(3).run.iterations == 62  # of 16,000 environment steps
    assert budget.settings(3).run.seed == 3
    own = Experiment("x", "direction", ("direction",))
    assert own.settings(0).run.iterations == load_settings(preset="direction").run.iterations
    with pytest.raises(SettingsError, match="not-yet"):
        Experiment("x", "not-yet", ("direction",)).settings(0)
