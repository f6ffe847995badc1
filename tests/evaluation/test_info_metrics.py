"""Metrics of what environments say in ``info``, from an update to every place that shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from maml_ray.cli.tables import print_evaluation
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.evaluate import evaluate
from maml_ray.evaluation.results import Evaluation
from maml_ray.evaluation.results_file import read_episodes, read_evaluation, write_evaluation
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.learning.state import UpdateMetrics
from maml_ray.persistence.records import FaultCounts, IterationRecord, IterationTimings
from maml_ray.reporting.progress_text import format_iteration
from maml_ray.reporting.tensorboard_tags import (
    evaluation_scalars,
    final_scalars,
    scalars_by_env_steps,
    scalars_by_iteration,
)
from maml_ray.tasks.task import Task, TaskDistribution
from tests.small_runs import agent_of

NAMES = ("success", "late", "never")


class Reach(gym.Env[Any, Any]):
    """Has success in the second half of an episode; every second one says something at its end."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.odd = 0, bool(self.np_random.integers(2))
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        info: dict[str, Any] = {"success": self.t > 2, "contacts": np.zeros(self.t)}
        if self.odd and self.t == 4:
            info["late"] = 7.0
        return np.zeros(1, np.float32), float(np.sum(action)), False, False, info


class ReachTasks(TaskDistribution):
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(self.task({"goal": goal}) for goal in rng.uniform(size=count))

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        return gym.wrappers.TimeLimit(Reach(), horizon)


def chosen(names: tuple[str, ...] = NAMES) -> Settings:
    return validate_settings(
        {
            "run": {"name": "reach"},
            "task": {"name": f"{__name__}:ReachTasks", "horizon": 4, "info_metrics": list(names)},
            "policy": {"hidden_sizes": [4]},
            "meta_batch": {"tasks": 2, "episodes": 6},
        }
    )


@pytest.fixture(scope="module")
def update() -> UpdateMetrics:
    settings = chosen()
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    tasks = sample_tasks(settings, worker.tasks, 0)
    rollouts = [
        worker.roll_out(learner.publish(), Assignment(0, index, task, 0))[0]
        for index, task in enumerate(tasks)
    ]
    worker.close()
    return learner.update(rollouts)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(agent_of(chosen()), tasks=2, episodes=6, steps=1)


def test_an_update_has_them_and_a_row_has_their_keys(update: UpdateMetrics) -> None:
    expected = {"success": 0.5, "late": 7.0, "never": None}
    assert update.infos_before == update.infos_after == expected
    record = IterationRecord(
        0, 1, update, IterationTimings(1.0, 0.5, 0.1, 0.2), 96, 1.0, FaultCounts(*[0] * 9)
    )
    row = record.as_row()
    assert {key: row[key] for key in row if key.startswith(NAMES)} == {
        f"{name}_{when}": value for name, value in expected.items() for when in ("before", "after")
    }
    for scalars in (scalars_by_iteration(row), scalars_by_env_steps(row)):
        shown = {tag.partition("/")[2]: value for tag, value in scalars.items()}
        assert shown["success_before"] == shown["success_after"] == 0.5
        assert shown["return_after"] == update.return_after
        assert "never_after" not in shown
    assert "  success 0.5 0.5  late 7 7  loss" in format_iteration(record, 1.0)


def test_an_evaluation_has_them_in_every_form(tmp_path: Path, evaluation: Evaluation) -> None:
    for row in (*evaluation.rows, *evaluation.rows_by_task):
        assert row.infos["success"] == 0.5
        assert row.infos["never"] is None
    assert all(row.infos["late"] == 7.0 for row in evaluation.rows)
    paths = tmp_path / "evaluation.json", tmp_path / "evaluation.csv"
    baselines = {"other": evaluate(agent_of(chosen(())), tasks=2, episodes=6, steps=1)}
    write_evaluation(evaluation, chosen(), baselines, *paths)
    results = read_evaluation(paths[0])
    assert results["rows"][0]["infos"] == evaluation.rows[0].infos
    assert read_episodes(*paths).measurements == evaluation.measurements
    header, first = paths[1].read_text(encoding="utf-8").splitlines()[:2]
    assert header.endswith(",speed,info_success,info_late,info_never")
    assert first.count(",") >= header.count(",")
    points = evaluation_scalars(results)
    assert points[1]["3 evaluation by inner steps/success"] == 0.5
    assert final_scalars(results)["1 returns by iteration/late_after"] == 7.0
    output = io.StringIO()
    print_evaluation(Console(file=output, width=100), results)
    title = next(line for line in output.getvalue().splitlines() if "steps" in line)
    assert [name in title for name in NAMES] == [True] * 3
    assert "success" in evaluation._repr_html_()


def test_a_data_frame_has_a_column_of_each(evaluation: Evaluation) -> None:
    pytest.importorskip("pandas")
    frame = evaluation.to_dataframe()
    assert (frame["info_success"] == 0.5).all()
    assert set(frame["info_late"].dropna()) == {7.0}
    assert frame["info_never"].isna().all()
