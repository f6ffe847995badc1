"""Asynchronous collection on Ray gives the bits of the same schedule of plain calls."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray

from maml_ray.common.errors import Interrupted
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.learning.state import LearnerState
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.learner_handle import LearnerHandle, RolloutsLost
from maml_ray.runtime.rollout_pool import RolloutPool
from maml_ray.tasks.loading import resolve_tasks
from tests.learning_runs import same_state
from tests.small_ray import Recorder

ITERATIONS = 5
pytestmark = pytest.mark.usefixtures("local_ray")


def settings(actors: int = 2) -> Settings:
    return validate_settings(
        {
            "run": {"seed": 5, "iterations": ITERATIONS},
            "task": {"horizon": 30},
            "policy": {"hidden_sizes": [16]},
            "meta_batch": {"tasks": 4, "episodes": 3, "async_collection": True},
            "outer": {"epochs": 2, "tasks_per_minibatch": 3, "final_learning_rate": 1e-4},
            "cluster": {"rollout_actors": actors, "learner_threads": 1},
        }
    )


@cache
def schedule() -> LearnerState:
    """Run the same schedule without Ray, as explicit calls."""
    chosen = settings()
    worker, tasks = RolloutWorker(chosen), resolve_tasks(chosen.task)
    learner = MetaLearner(chosen, worker.spec)
    published = [learner.publish()]
    for iteration in range(ITERATIONS):
        theta = published[max(0, iteration - 1)]
        drawn = enumerate(sample_tasks(chosen, tasks, iteration))
        work = [Assignment(iteration, index, task, theta.version) for index, task in drawn]
        learner.update([worker.roll_out(theta, one)[0] for one in work])
        published.append(learner.publish())
    return learner.state()


def trained(path: Path, actors: int = 2, **others: Any) -> Recorder:
    recorder = Recorder()
    train_on_ray(settings(actors), RunDir(path), observers=[recorder], **others)
    return recorder


def assert_as_scheduled(path: Path) -> None:
    found = load_newest_checkpoint(LocalStorage(path))[0].learner
    assert same_state(found, schedule())


@pytest.mark.parametrize("actors", [1, 2])
def test_ray_and_the_number_of_actors_add_nothing_to_the_mathematics(
    tmp_path: Path, actors: int
) -> None:
    recorder = trained(tmp_path, actors)
    assert_as_scheduled(tmp_path)
    assert [record.update.staleness for record in recorder.records] == [0, 1, 1, 1, 1]
    assert max(record.update.collector_ratio_error for record in recorder.records) < 1e-4
    assert recorder.events == []


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    with pytest.raises(Interrupted):
        train_on_ray(settings(), RunDir(tmp_path), observers=[Recorder(stop_after)])
    checkpoint, _ = load_newest_checkpoint(LocalStorage(tmp_path))
    assert checkpoint.iteration == stop_after
    assert checkpoint.learner.stale_params is not None
    assert checkpoint.learner.stale_params.version == stop_after - 1
    resumed = trained(tmp_path, resume=checkpoint)
    assert [record.iteration for record in resumed.records] == list(range(stop_after, ITERATIONS))
    assert_as_scheduled(tmp_path)


def test_failures_during_two_meta_batches_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the learner in update 1, lose rollouts in update 2, kill an actor at meta-batch 4."""
    happened: list[str] = []
    wait, update, submit = LearnerHandle._wait_for_update, LearnerHandle.update, RolloutPool.submit

    def once(what: str) -> bool:
        if what in happened:
            return False
        happened.append(what)
        return True

    def waiting(learner: LearnerHandle, *refs: Any, **others: Any) -> Any:
        if learner.state.version == 1 and once("learner"):
            os.kill(ray.get(learner._active.location_ref, timeout=60).pid, signal.SIGKILL)
        return wait(learner, *refs, **others)

    def updating(learner: LearnerHandle, rollouts: Sequence[Any], poll_fn: Any = None) -> Any:
        if learner.state.version == 2 and once("rollouts"):
            poll_fn([])
            raise RolloutsLost("their node has gone")
        return update(learner, rollouts, poll_fn)

    def beginning(pool: RolloutPool, theta: Any, work: Sequence[Assignment], *others: Any) -> Any:
        if work[0].iteration == 4 and once("actor"):
            (handle, *_) = pool._actors
            assert handle.location is not None
            os.kill(handle.location.pid, signal.SIGKILL)
        return submit(pool, theta, work, *others)

    monkeypatch.setattr(LearnerHandle, "_wait_for_update", waiting)
    monkeypatch.setattr(LearnerHandle, "update", updating)
    monkeypatch.setattr(RolloutPool, "submit", beginning)
    recorder = trained(tmp_path)
    assert happened == ["learner", "rollouts", "actor"]
    assert_as_scheduled(tmp_path)
    assert recorder.records[-1].faults.learner_restarts == 1
    assert recorder.records[2].faults.lost == 4  # all tasks of a lost meta-batch
    assert recorder.records[-1].faults.failures == 3
    events = "\n".join(recorder.events)
    for words in ("the meta-update of version 1", "their node has gone", "its actor died"):
        assert words in events
