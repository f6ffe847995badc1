"""Finished runs, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest

from maml_ray.config.loading import dump_settings
from maml_ray.persistence.run_dir import RunDir
from tests.reporting.conftest import made_up_record
from tests.reproduction.experiments import Experiment
from tests.reproduction.runs import EPISODES, FEW_EPISODES, TASKS, few_episodes_file, run_folder

ITERATIONS = 4
DIRECTIONS = {"forward": {"direction": 1.0}, "backward": {"direction": -1.0}}
EXPERIMENT = Experiment(
    "tiny", "direction", ("direction",), overrides=(f"run.iterations={ITERATIONS}",), seeds=(0, 1)
)


class MakeRun(Protocol):
    def __call__(
        self,
        experiment: Experiment = EXPERIMENT,
        seed: int = 0,
        *,
        finished: int = ITERATIONS,
        value: float | None = 0.0,
        tasks: dict[str, dict[str, float]] = DIRECTIONS,
    ) -> RunDir: ...


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run of 2 minutes; its return is ``value`` before and 100 more after each step.

    With mean actions it is 1,000 more, of the second task 10 less, and with few episodes 5 less.
    """

    def make(
        experiment: Experiment = EXPERIMENT,
        seed: int = 0,
        *,
        finished: int = ITERATIONS,
        value: float | None = 0.0,
        tasks: dict[str, dict[str, float]] = DIRECTIONS,
    ) -> RunDir:
        folder = run_folder(tmp_path, experiment, seed)
        folder.path.mkdir()
        folder.settings.write_text(dump_settings(experiment.settings(seed)), encoding="utf-8")
        rows = [made_up_record(i, wall_s=30.0).as_row() for i in range(finished)]
        folder.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if finished == ITERATIONS and value is not None:
            full = evaluation(tasks, value, range(experiment.steps + 1))
            few = evaluation(tasks, value - 5.0, range(2))
            few["adaptation_episodes"] = FEW_EPISODES
            folder.evaluation.write_text(json.dumps(full))
            few_episodes_file(folder).write_text(json.dumps(few))
        return folder

    return make


def evaluation(tasks: dict[str, dict[str, float]], value: float, steps: range) -> dict[str, Any]:
    def row(task: str | None, step: int, actions: str) -> dict[str, Any]:
        mean = value + 100.0 * step + (1000.0 if actions == "mean" else 0.0)
        mean -= 10.0 * list(tasks).index(task) if task is not None else 5.0
        numbers = {"low": mean, "high": mean, "speed": None, "episodes": EPISODES}
        return {"task": task, "steps": step, "actions": actions, "mean": mean, **numbers}

    every = [(step, actions) for step in steps for actions in ("stochastic", "mean")]
    return {
        "tasks": TASKS,
        "episodes": EPISODES,
        "rows": [row(None, *each) for each in every],
        "rows_by_task": [row(task, *each) for task in tasks for each in every],
        "task_parameters": tasks,
        "beside": {"random": [row(None, *each) for each in every]},
    }
