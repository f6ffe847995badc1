"""Compute the result of an undisturbed run in one process, without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.learning.state import LearnerState
from maml_ray.tasks.loading import resolve_tasks


def undisturbed(settings: Settings) -> LearnerState:
    """Return the learner's state after all iterations."""
    worker, tasks = RolloutWorker(settings), resolve_tasks(settings.task)
    learner = MetaLearner(settings, worker.spec)
    for iteration in range(settings.run.iterations):
        theta = learner.collection_params()
        learner.update(
            [
                worker.roll_out(theta, Assignment(iteration, index, task, theta.version))[0]
                for index, task in enumerate(sample_tasks(settings, tasks, iteration))
            ]
        )
    return learner.state()


def fingerprint(parameters: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the parameters' names, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        value = np.ascontiguousarray(parameters[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
