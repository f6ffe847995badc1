"""Every option of every command with a wrong value: exit code 2, and its name in the sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.command_line import assert_refused, run, training_refused
from tests.bad_input.odd import WORDS
from tests.small_runs import run_of, settings

NUMBERS = ("0", "-1", "x", "", "1.5", "nan", "9" * 30, "9" * 4000, "\udcff", "[/b]", "1e3")
OPTIONS = (
    ("evaluate", "--tasks"),
    ("evaluate", "--episodes"),
    ("adapt", "--episodes"),
    ("adapt", "--steps"),
)


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_wrong_number(tmp_path: Path, command: str, option: str, value: str) -> None:
    folder = str(run_of(settings(), tmp_path / "run").path)
    task = ["--task", '{"x": 0.1, "y": 0.2}'] if command == "adapt" else []
    assert_refused(run(command, folder, *task, f"{option}={value}"), option)


@pytest.mark.parametrize("value", WORDS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("option", ["--steps", "--seed", "--inner-rate", "--video"])
def test_odd_words_for_options_of_evaluate(tmp_path: Path, option: str, value: str) -> None:
    assert_refused(run("evaluate", str(tmp_path), f"{option}={value}"))


@pytest.mark.parametrize("value", WORDS, ids=lambda value: repr(value)[:12])
def test_odd_words_for_options_of_train(value: str) -> None:
    with training_refused():
        for option in ("--preset", "--resume", "--set"):
            assert_refused(run("train", f"{option}={value}"))
        assert_refused(run("train", "--set", f"run.seed={value}x"))
        assert_refused(run("adapt", "x", f"--task={value}"))
