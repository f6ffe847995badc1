"""Test the loop on Ray: the result depends neither on the actors nor on interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maml_ray.common.errors import Interrupted, Superseded
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.lease import acquire_lease
from maml_ray.persistence.records import INCIDENTAL_KEYS, IterationRecord
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.tasks.loading import record_own_tasks, resolve_tasks
from tests.small_ray import Recorder

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(actors: int = 2, run: dict[str, Any] | None = None) -> Settings:
    return validate_settings(
        {
            "run": {"seed": 5, "iterations": 4, "checkpoint_every": 2, **(run or {})},
            "task": {"horizon": 30},
            "policy": {"hidden_sizes": [16]},
            "meta_batch": {"tasks": 4, "episodes": 3},
            "outer": {"epochs": 2, "tasks_per_minibatch": 3, "final_learning_rate": 1e-4},
            "cluster": {"rollout_actors": actors, "learner_threads": 1},
        }
    )


def trained(run_settings: Settings, path: Path, **kwargs: object) -> tuple[Recorder, RunDir]:
    recorder, folder = Recorder(), RunDir(path)
    train_on_ray(run_settings, folder, observers=[recorder], **kwargs)  # type: ignore[arg-type]
    assert recorder.events == []
    return recorder, folder


def assert_same_result(one: RunDir, other: RunDir) -> None:
    first, second = (
        load_newest_checkpoint(LocalStorage(folder.path))[0] for folder in (one, other)
    )
    assert (first.iteration, first.total_env_steps) == (second.iteration, second.total_env_steps)
    one_moved, other_moved = first.learner.optimizer, second.learner.optimizer
    for a, b in (
        (first.learner.parameters, second.learner.parameters),
        (one_moved.first_moments, other_moved.first_moments),
        (one_moved.second_moments, other_moved.second_moments),
    ):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def learning_figures(recorder: Recorder) -> list[dict[str, object]]:
    rows = [record.as_row() for record in recorder.records]
    return [
        {k: v for k, v in row.items() if k not in {*INCIDENTAL_KEYS, "learn_s"}} for row in rows
    ]


def test_one_actor_and_two_give_the_same_parameters_to_the_last_bit(
    tmp_path: Path,
) -> None:
    one, one_folder = trained(settings(actors=1), tmp_path / "one")
    two, two_folder = trained(settings(actors=2), tmp_path / "two")
    assert one.starts[0].rollout_actors == 1
    assert two.starts[0].rollout_actors == 2
    assert_same_result(one_folder, two_folder)
    assert learning_figures(one) == learning_figures(two)


def test_ray_adds_nothing_to_the_mathematics(tmp_path: Path) -> None:
    run_settings = settings()
    _, folder = trained(run_settings, tmp_path)
    worker = RolloutWorker(run_settings)
    learner, tasks = MetaLearner(run_settings, worker.spec), resolve_tasks(run_settings.task)
    for iteration in range(run_settings.run.iterations):
        theta = learner.publish()
        work = [
            Assignment(iteration, index, task, iteration)
            for index, task in enumerate(sample_tasks(run_settings, tasks, iteration))
        ]
        learner.update([worker.roll_out(theta, assignment)[0] for assignment in work])
    distributed = load_newest_checkpoint(LocalStorage(folder.path))[0].learner.parameters
    for name, value in learner.publish().values.items():
        np.testing.assert_array_equal(distributed[name], value)


@pytest.mark.parametrize(
    "stop_after",
    [pytest.param(1, marks=pytest.mark.cluster), pytest.param(2, marks=pytest.mark.cluster), 3],
)
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path, stop_after: int) -> None:
    _, whole = trained(settings(), tmp_path / "whole")
    broken = RunDir(tmp_path / "broken")
    interrupted = Recorder(stop_after)
    with pytest.raises(Interrupted):
        train_on_ray(settings(), broken, observers=[interrupted])
    assert interrupted.events == []
    checkpoint, _ = load_newest_checkpoint(LocalStorage(broken.path))
    assert checkpoint.iteration == stop_after
    resumed, _ = trained(settings(), tmp_path / "broken", resume=checkpoint)
    assert [r.iteration for r in resumed.records] == list(range(stop_after, 4))
    assert resumed.starts[0].first_iteration == stop_after
    assert_same_result(whole, broken)


@pytest.mark.cluster
def test_a_run_resumed_elsewhere_stops_here_and_ends_there_with_the_same_bits(
    tmp_path: Path,
) -> None:
    kept = {"storage": str(tmp_path / "kept")}
    here, there = RunDir(tmp_path / "here" / "run"), RunDir(tmp_path / "there" / "run")
    storage = LocalStorage(tmp_path / "kept" / "run")

    class Overtaken(Recorder):
        def on_iteration(self, record: IterationRecord) -> None:
            super().on_iteration(record)
            if record.iteration == 1:  # its first checkpoint is not written yet
                acquire_lease(storage)

    _, whole = trained(settings(), tmp_path / "whole")
    older = Overtaken()
    with pytest.raises(Superseded, match=r"attempt 2 .* this one, attempt 1, stops"):
        train_on_ray(settings(run=kept), here, observers=[older])
    assert older.events == []
    assert storage.names("checkpoints") == []
    assert older.starts[0].attempt == 1
    newer, _ = trained(settings(run=kept), there.path)
    assert newer.starts[0].attempt == 3
    assert {record.attempt for record in newer.records} == {3}
    assert_same_result(whole, RunDir(storage.path))


def test_the_parts_of_an_iteration_add_up_to_its_wall_time(tmp_path: Path) -> None:
    recorder, _ = trained(settings(), tmp_path)
    for record in recorder.records:
        times = record.timings
        assert times.collect_s > 0
        assert times.learn_s > 0
        assert times.collect_s + times.adapt_s + times.learn_s + times.rest_s == pytest.approx(
            times.wall_s
        )
        assert record.update.env_steps == 4 * 3 * 30 * 2
    assert recorder.records[-1].total_env_steps == 4 * 4 * 3 * 30 * 2


def test_tasks_given_in_python_train_as_those_named_by_their_path(tmp_path: Path) -> None:
    """The class is one of ``__main__`` that no other process can import, as in a notebook."""
    program = "from tests.tasks.families import PendulumTasks as Base\nclass Tasks(Base): ..."
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(program, cell)
    sections = settings(run={"iterations": 2}).model_dump(mode="json")
    sections["task"]["name"] = "tests.tasks.families:PendulumTasks"
    named = validate_settings(sections)
    _, by_path = trained(named, tmp_path / "path")
    for number, own in enumerate((cell["Tasks"], cell["Tasks"]())):
        recorded = record_own_tasks(named, own)
        _, given = trained(recorded, tmp_path / f"given-{number}", own_tasks=own)
        assert_same_result(by_path, given)
