"""Commands that are printed do in a shell what they say, whatever the run directory is called."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maml_ray.common.locations import parse_path
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.storage import LocalStorage
from tests.bad_input.command_line import run
from tests.runs import fake_training
from tests.runs.fake_training import FakeTraining, training_made_up

NAME = "it's my $run; läuft"
SMALL = [
    *("--preset", "point-navigation", "--iterations", "2", "--set", "task.horizon=8"),
    *("--set", "policy.hidden_sizes=[4]", "--set", "meta_batch={tasks: 2, episodes: 2}"),
    *("--set", "evaluation={tasks: 1, episodes: 1, video: false}"),
]


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTraining]:
    with training_made_up(monkeypatch, tmp_path) as made_up:
        yield made_up


def argument(directory: str) -> str:
    """Return a directory as a person types it: the command replaces variables."""
    return directory.replace("$", "$$")


def test_the_next_steps_of_a_finished_run_can_be_copied() -> None:
    done = run("train", *SMALL, "--run-dir", argument(NAME))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    evaluate, tensorboard, python = map(shlex.split, lines[lines.index("next:") + 1 :][:3])
    assert evaluate[:2] == ["maml-ray", "evaluate"]
    assert parse_path(evaluate[2], "RUN").samefile(NAME)
    assert tensorboard == ["tensorboard", "--logdir", os.path.join(NAME, "tensorboard")]
    assert python[:2] == ["python", "-c"]
    found: dict[str, Any] = {}
    exec(python[2], found)
    assert found["agent"].spec.observation_size == 2


def test_a_directory_that_is_taken_names_the_command_to_resume() -> None:
    assert run("train", *SMALL, "--run-dir", argument(NAME)).code == 0
    again = run("train", *SMALL, "--run-dir", argument(NAME))
    assert again.code == 2
    words = shlex.split(again.err.partition("resume it with ")[2])
    assert words[0] == "--resume"
    assert parse_path(words[1].rstrip(","), "--resume").samefile(NAME)


def test_after_a_full_disk_one_directory_is_named_and_the_run_goes_on_there(
    monkeypatch: pytest.MonkeyPatch, training: FakeTraining
) -> None:
    write, fallback = LocalStorage.write, "an other disk"

    def full(storage: LocalStorage, name: str, content: bytes) -> None:
        if name.startswith("checkpoints") and fallback not in str(storage):
            raise OSError(28, "No space left on device")
        write(storage, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", full)
        patch.setattr(fake_training, "WAIT_S", 0.2)
        stopped = run(
            *("train", *SMALL, "--run-dir", argument(NAME)),
            *("--set", f"faults.fallback_directory={fallback}"),
        )
    assert stopped.code == 1, stopped.err
    assert "No space left on device" in stopped.err
    assert stopped.err.count("--resume") == 1
    command = shlex.split(stopped.err.partition("resume with: ")[2])
    assert command[:3] == ["maml-ray", "train", "--resume"]
    saved = parse_path(command[3], "--resume")
    assert saved.parent.samefile(fallback)
    assert load_newest_checkpoint(LocalStorage(saved))[0].iteration == 1
    assert run(*command[1:]).code == 0
    assert [first for first, _ in training.spans] == [0, 1]
