"""A learner and its worker in one process, and what makes two of them the same."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.learning.state import LearnerState
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.trajectories import TaskRollouts


def change(settings: Settings, section: str, **values: Any) -> Settings:
    """``settings`` with some values of one section changed."""
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


class Run:
    """A learner and the worker that serves it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.worker = RolloutWorker(settings)
        self.learner = MetaLearner(settings, self.worker.spec)

    def collect(self) -> list[TaskRollouts]:
        published, iteration = self.learner.collection_params(), self.learner.version
        tasks = sample_tasks(self.settings, self.worker.tasks, iteration)
        return [
            self.worker.roll_out(published, Assignment(iteration, i, task, published.version))[0]
            for i, task in enumerate(tasks)
        ]


def rewarded(settings: Settings, task: TaskRollouts, rewards: Any) -> TaskRollouts:
    """``task`` with other rewards in its query data, and the advantages that they give."""
    query = replace(task.query, rewards=rewards)
    return replace(
        task, query=query, query_advantages=compute_advantages(query, settings.advantages)
    )


def same(first: Any, second: Any) -> bool:
    """Equality of parameter dictionaries to the last bit."""
    return set(first) == set(second) and all(
        np.array_equal(np.asarray(first[name]), np.asarray(second[name])) for name in first
    )


def same_state(first: LearnerState, second: LearnerState) -> bool:
    one, other = first.optimizer, second.optimizer
    return (
        (first.version, one.steps) == (second.version, other.steps)
        and same(first.parameters, second.parameters)
        and same(one.first_moments, other.first_moments)
        and same(one.second_moments, other.second_moments)
        and same(vars(first.obs_stats), vars(second.obs_stats))
    )


def without_time(metrics: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(metrics).items() if key != "learn_s"}
