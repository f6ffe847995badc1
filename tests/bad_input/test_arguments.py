"""Every option of every command with a wrong value: exit code 2, and its name in the sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.cli.main import app
from maml_ray.common.errors import ResourceError
from tests.bad_input.command_line import REACHED, assert_refused, run, training_refused
from tests.bad_input.odd import WORDS
from tests.bad_input.test_settings import cases
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


COMMANDS = {
    name: [
        "--help",
        *chain.from_iterable((*each.opts, *each.secondary_opts) for each in command.params),
    ]
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
"""Every option of every command, and the names of its arguments."""
VALUES = st.sampled_from((*WORDS, *NUMBERS)) | st.text(max_size=20)
PLACE = "RUN"
"""Stands for a run folder that is whole."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with options of its own and of others, with odd values, none, and a run or two."""
    command = draw(st.sampled_from(sorted(COMMANDS)) | VALUES)
    options = st.sampled_from(COMMANDS.get(command, ["--help"])) | st.sampled_from(
        sorted(set().union(*COMMANDS.values()))
    )
    argument = (
        st.builds(lambda option, value: [f"{option}={value}"], options, VALUES)
        | st.builds(lambda option, value: [option, value], options, VALUES)
        | options.map(lambda option: [option])
        | VALUES.map(lambda value: [value])
        | st.just([PLACE])
    )
    return [command, *chain.from_iterable(draw(st.lists(argument, max_size=4)))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder, and a working directory so deep that no name of the words leads out of it."""
    place = tmp_path_factory.mktemp("arguments")
    deep = place / "a" / "b" / "c"
    deep.mkdir(parents=True)
    before = os.getcwd()
    os.chdir(deep)
    yield run_of(settings(evaluation={"tasks": 1, "episodes": 1}), place / "run").path
    os.chdir(before)


@cases(100)
@given(line=command_lines())
def test_any_command_line(whole: Path, line: list[str]) -> None:
    """Done, or refused in a sentence: never a traceback, whatever the words and their order."""
    copied = whole.parent / "copy"
    if PLACE in line:
        shutil.copytree(whole, copied)
    with training_refused():
        outcome = run(*(str(copied) if word == PLACE else word for word in line))
    shutil.rmtree(copied, ignore_errors=True)
    assert "Traceback" not in outcome.out + outcome.err
    if outcome.code == 1:
        assert REACHED in outcome.err
    elif outcome.code == ResourceError.exit_code:
        assert outcome.err.startswith("maml-ray: no Ray cluster runs on this machine")
    elif outcome.code:
        assert_refused(outcome)
