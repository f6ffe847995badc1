"""The constants of the forecast: the learner's by itself, the others from the runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.rollouts.trajectories import TaskRollouts
from tests.benchmarks.scaling_model import Parts

TASKS = 8
EPOCHS = (1, 4)
ROUNDS = 5


@dataclass(frozen=True)
class LearnerParts:
    """The learner's arithmetic per task of the default settings, in seconds."""

    prepare_s: float
    epoch_s: float


def measure_learner() -> LearnerParts:
    """Updates from real rollouts of half-cheetahs, on all cores, all epochs gone through.

    The shortest of interleaved rounds: what else runs on the machine only adds to them.
    """
    rollouts, threads = _rollouts(_settings(1)), torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        rounds = [[_update_s(epochs, rollouts) for epochs in EPOCHS] for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    times = dict(zip(EPOCHS, np.min(rounds, axis=0).tolist(), strict=True))
    few, many = EPOCHS
    epoch_s: float = (times[many] - times[few]) / (many - few) / TASKS
    return LearnerParts(prepare_s=max(0.0, times[few] / TASKS - few * epoch_s), epoch_s=epoch_s)


def _settings(epochs: int) -> Settings:
    return validate_settings(
        {
            "meta_batch": {"tasks": TASKS},
            "outer": {"epochs": epochs, "max_query_kl": None, "diagnose_every": None},
        }
    )


def _rollouts(settings: Settings) -> list[TaskRollouts]:
    worker = RolloutWorker(settings)
    theta = MetaLearner(settings, worker.spec).publish()
    drawn = sample_tasks(settings, worker.tasks, 0)
    return [worker.roll_out(theta, Assignment(0, i, task, 0))[0] for i, task in enumerate(drawn)]


def _update_s(epochs: int, rollouts: Sequence[TaskRollouts]) -> float:
    settings = _settings(epochs)
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec, threads=os.cpu_count() or 1)
    began = time.perf_counter()
    learner.update(rollouts)
    return time.perf_counter() - began


def parts_of(
    sizes: Sequence[int],
    driver_s: Sequence[float],
    fetched_s: Sequence[float],
    fixed_s: float,
    actor_s: float,
    bytes_each: tuple[float, float],
    learner: LearnerParts,
) -> Parts:
    """Straight lines through what was measured with so many actors, by least squares.

    Args:
        sizes: numbers of actors, two at least.
        driver_s: the driver's own thread, per iteration.
        fetched_s: the learner's update without its arithmetic.
        fixed_s: of an iteration with one actor: neither physics nor learning.
        actor_s: an actor's work.
        bytes_each: of a task's rollouts, and of a version.
        learner: its arithmetic.
    """
    return Parts(
        actor_s=actor_s,
        fixed_s=fixed_s,
        driver_s=_slope(sizes, driver_s),
        fetch_s=_slope(sizes, fetched_s),
        prepare_s=learner.prepare_s,
        epoch_s=learner.epoch_s,
        task_bytes=bytes_each[0],
        version_bytes=bytes_each[1],
    )


def _slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    return max(0.0, float(np.polyfit(sizes, values, 1)[0]))
