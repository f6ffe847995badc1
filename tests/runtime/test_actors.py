"""What a rollout actor sends to the learner."""

from __future__ import annotations

import pickle

import pytest

from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime import actors
from tests.learning_runs import change


def sent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[TaskRollouts, TaskRollouts]:
    """What the actor sends, and what its worker has collected."""
    location = actors.ActorLocation("node", "host", 1)
    monkeypatch.setattr(actors, "_own_location", lambda: location)
    worker = RolloutWorker(settings)
    parameters = MetaLearner(settings, worker.spec).collection_params()
    (task, *_) = sample_tasks(settings, worker.tasks, 0)
    assignment = Assignment(0, 0, task, parameters.version)
    rollouts, info = actors.RolloutActor("one", settings).roll_out(parameters, assignment)
    assert info.node_id == "node"
    return rollouts, worker.roll_out(parameters, assignment)[0]


def test_of_support_episodes_with_contexts_half_of_the_bytes_are_not_sent(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = change(small_settings, "meta_batch", episodes=4)
    settings = change(settings, "inner", parameters="context", learning_rate=3.0, steps=1)
    mine, whole = sent(settings, monkeypatch)
    assert mine.support[0].observations.size == mine.support[0].actions.size == 0
    assert (mine.support[0].rewards == whole.support[0].rewards).all()
    assert (mine.query.observations == whole.query.observations).all()
    assert len(pickle.dumps(mine)) < 0.6 * len(pickle.dumps(whole))


def test_without_a_context_all_is_sent(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, whole = sent(small_settings, monkeypatch)
    assert pickle.dumps(mine) == pickle.dumps(whole)
