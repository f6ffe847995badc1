"""Mistakes in calls from Python: one sentence with the argument's name and what to write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.learning.rollout_worker import policy_spec
from tests.bad_input.command_line import SENTENCE, fingerprint
from tests.small_runs import agent_of, run_of, settings

AGENT = agent_of(settings())
DATA = AGENT.collect_support(episodes=2)
GOAL = {"x": 0.1, "y": 0.2}
ANY: Any = None
"""Stands for what type checkers would refuse, or what is not read."""
SUPPORT: tuple[Any, ...] = (None, 3, [])
"""No support sets."""


class NoEnvironment(maml_ray.TaskDistribution):
    """Tasks whose environment is none."""

    def sample(self, rng: Any, count: int) -> tuple[maml_ray.Task, ...]:
        return (maml_ray.Task("one"),) * count

    def make_env(self, task: maml_ray.Task, *, horizon: int, render_mode: str | None = None) -> Any:
        return object()


MISTAKES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "settings": (lambda: maml_ray.train({}), ["settings = {}", "YAML file"]),  # type: ignore[arg-type]
    "preset": (lambda: maml_ray.train("directon"), ["'directon'", "did you mean 'direction'"]),
    "observers": (
        lambda: maml_ray.train(observers=maml_ray.Observer),  # type: ignore[arg-type]
        ["observers = <class", "observers=[MyObserver()]"],
    ),
    "resume and run_dir": (
        lambda: maml_ray.train(resume="run", run_dir="x"),
        ["resume", "leave run_dir out"],
    ),
    "run_dir in a file": (
        lambda: maml_ray.train(run_dir="file/run"),
        ["file/run", "file is not a directory", "--run-dir"],
    ),
    "preset of another type": (
        lambda: maml_ray.load_settings(preset=3),  # type: ignore[arg-type]
        ["preset = 3", "direction"],
    ),
    **{
        f"overrides {value!r}": (
            lambda value=value: maml_ray.load_settings(overrides=value),  # type: ignore[misc]
            ["overrides = ", '{"outer.epochs": 4}'],
        )
        for value in (None, 3, [3], [("outer.epochs", 3)], "outer.epochs=3")
    },
    **{
        f"episodes {value!r}": (
            lambda value=value: AGENT.collect(GOAL, episodes=value),  # type: ignore[misc]
            [f"episodes = {value!r}", "whole number of 1 or more"],
        )
        for value in (0, -1, 2.5, "3", True)
    },
    **{
        f"seed {value!r}": (
            lambda value=value: AGENT.collect(GOAL, seed=value),  # type: ignore[misc]
            [f"seed = {value!r}", "whole number of 0 or more"],
        )
        for value in (-1, 1.5, "x", None)
    },
    "count": (lambda: AGENT.sample_tasks(-1), ["count = -1"]),
    "seed of tasks": (lambda: AGENT.sample_tasks(1, seed=-1), ["seed = -1"]),
    **{
        f"support {value!r}": (
            lambda value=value: AGENT.adapt(value),  # type: ignore[misc]
            [f"support = {value!r}", "agent.collect_support(task)"],
        )
        for value in SUPPORT
    },
    "steps": (lambda: AGENT.adapt(DATA, steps="1"), ["steps = '1'"]),  # type: ignore[arg-type]
    "no steps": (lambda: AGENT.adapt(DATA, steps=0), ["steps = 0", "1 or more"]),
    "seed of adapting": (lambda: AGENT.adapt(GOAL, seed=-1), ["seed = -1"]),
    "episodes of adapting": (lambda: AGENT.adapt(GOAL, episodes=0), ["episodes = 0"]),
    "a path for an agent": (
        lambda: maml_ray.evaluate("run"),  # type: ignore[arg-type]
        ["agent = 'run'", "maml_ray.load(RUN)"],
    ),
    **{
        f"evaluate {name} {value!r}": (
            lambda name=name, value=value: maml_ray.evaluate(AGENT, **{name: value}),  # type: ignore[misc]
            [f"{name} = {value!r}"],
        )
        for name, value in (("tasks", 0), ("episodes", -1), ("steps", "0..3"), ("seed", -1))
    },
    "video elsewhere": (
        lambda: maml_ray.record_video(AGENT, (ANY,), "no/x.mp4"),
        ["no/x.mp4", "existing directory"],
    ),
    "video's format": (lambda: maml_ray.record_video(AGENT, (ANY,), "x.gif"), ["x.gif", ".mp4"]),
    "an evaluation for replays": (
        lambda: maml_ray.record_video(AGENT, object(), "x.mp4"),  # type: ignore[arg-type]
        ["evaluation.replays"],
    ),
    "check_tasks None": (lambda: maml_ray.check_tasks(ANY), ["tasks = None", "check_tasks("]),
    "check_tasks name": (
        lambda: maml_ray.check_tasks("ant-velocity"),  # type: ignore[arg-type]
        ["tasks = 'ant-velocity'", "check_tasks("],
    ),
    "no environment": (
        lambda: policy_spec(settings(), NoEnvironment()),
        ["make_env of the task", "returns a builtins.object, not a gymnasium.Env"],
    ),
}


@pytest.mark.parametrize(("call", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_ray_starts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    run_of(settings(), tmp_path / "run")
    before = fingerprint(tmp_path)
    started = mock.Mock()
    with (
        mock.patch("maml_ray.runs.train.train_on_ray", started),
        pytest.raises(UserError) as refused,
    ):
        call()
    started.assert_not_called()
    assert fingerprint(tmp_path) == before
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < SENTENCE
    for word in words:
        assert word in sentence


def test_a_checkpoint_is_named_by_its_number(tmp_path: Path) -> None:
    run = run_of(settings(), tmp_path / "run")
    assert maml_ray.load(run.path, checkpoint=1).parameters
    with pytest.raises(UserError, match="has no checkpoint 7; it has: 1"):
        maml_ray.load(run.path, checkpoint=7)


def test_a_video_is_shown_in_notebooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(UserError, match="pip install ipykernel"):
        maml_ray.show_video("x.mp4")


def test_settings_of_a_sweep_are_settings() -> None:
    pytest.importorskip("ray.tune")
    with pytest.raises(UserError, match=r"settings = 'direction'.*tune_objective\("):
        maml_ray.tune_objective("direction")  # type: ignore[arg-type]
