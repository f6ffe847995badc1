"""Runs whose tasks are given to ``maml_ray.train`` in Python, without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import maml_ray
from maml_ray.common.errors import RunDirError
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import SettingsError
from maml_ray.persistence.run_dir import RunDir, open_run_dir
from maml_ray.runs.evaluate import evaluate_run
from maml_ray.tasks.families.half_cheetah import HalfCheetahDirectionTasks
from maml_ray.tasks.families.point_navigation import PointNavigationTasks
from tests.runs.fake_training import FakeTraining, training_made_up
from tests.small_runs import settings

RUN = Path("run")


class NearGoals(PointNavigationTasks):
    """Goals in a small square, by default."""

    def __init__(self, *, size: float = 0.1) -> None:
        super().__init__(goal_range=(0.0, size))


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTraining]:
    with training_made_up(monkeypatch, tmp_path) as made_up:
        yield made_up


SMALL = settings(run={"iterations": 1}, evaluation={"tasks": 3, "episodes": 1, "video": False})


def train(*arguments: Any, **keywords: Any) -> maml_ray.RunResult:
    return maml_ray.train(*arguments, console=Console(file=io.StringIO()), **keywords)


def test_a_run_is_evaluated_and_loaded_with_its_tasks() -> None:
    result = train(SMALL, tasks=NearGoals(size=0.2), run_dir=RUN)
    for measurement in result.evaluation.measurements:
        assert 0.0 <= dict(measurement.task.parameters)["x"] <= 0.2
    agent = result.load()
    assert agent.collect({"x": 0.1, "y": 0.1}, episodes=1).episodes == 1
    assert max(dict(task.parameters)["x"] for task in agent.sample_tasks(50)) <= 0.2
    assert load_settings(RunDir(RUN).settings).task.name == "python:NearGoals"
    files = {path.suffix for path in RUN.rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".pt", ".npy"}


def test_an_agent_of_such_a_run_acts_but_needs_the_tasks_to_collect() -> None:
    train(SMALL, tasks=NearGoals, run_dir=RUN)
    agent = maml_ray.load(RUN)
    assert agent.act(np.zeros(2)).shape == (2,)
    for use in (lambda: agent.sample_tasks(1), agent.collect, lambda: maml_ray.evaluate(agent)):
        with pytest.raises(SettingsError, match=r"maml_ray.load\(RUN, tasks=NearGoals\)"):
            use()
    with pytest.raises(SettingsError, match="were given in Python"):
        evaluate_run(open_run_dir(RUN))
    again = maml_ray.load(RUN, tasks=NearGoals)
    assert again.collect(episodes=1).episodes == 1
    again.save("policy")
    assert maml_ray.load("policy", tasks=NearGoals).collect(episodes=1).episodes == 1


def test_a_policy_is_loaded_with_other_tasks_that_fit_it() -> None:
    train(SMALL, run_dir=RUN)
    agent = maml_ray.load(RUN, tasks=NearGoals(size=0.3))
    assert agent.settings.task.name == "python:NearGoals"
    assert max(dict(task.parameters)["x"] for task in agent.sample_tasks(50)) <= 0.3
    with pytest.raises(RunDirError, match=r"does not fit .* python:HalfCheetahDirectionTasks has"):
        maml_ray.load(RUN, tasks=HalfCheetahDirectionTasks)


def test_resuming_asks_for_the_tasks_again(training: FakeTraining) -> None:
    train(SMALL, tasks=NearGoals, run_dir=RUN)
    with pytest.raises(SettingsError, match=r"maml_ray.train\(resume=RUN, tasks=NearGoals\)"):
        train(resume=RUN, iterations=2)
    with pytest.raises(SettingsError, match="'python:PointNavigationTasks', but the run to resume"):
        train(resume=RUN, iterations=2, tasks=PointNavigationTasks)
    assert len(training.spans) == 1
    result = train(resume=RUN, iterations=2, tasks=NearGoals)
    assert training.spans[1][0] == 1
    assert max(dict(task.parameters)["x"] for task in result.load().sample_tasks(50)) <= 0.1


@pytest.mark.parametrize("own", [int, "half-cheetah-direction", maml_ray.TaskDistribution])
def test_what_is_no_task_distribution_creates_no_run(own: Any, training: FakeTraining) -> None:
    with pytest.raises(SettingsError, match="tasks = "):
        train(SMALL, tasks=own, run_dir=RUN)
    assert not training.spans
    assert not RUN.exists()
