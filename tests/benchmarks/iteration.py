"""What share of a training iteration is neither physics nor the learner's arithmetic.

The physics is timed on the same cores, all of them busy with it at once, as they are while
collecting: before the training iterations where a fresh policy leads it, and after them where the
trained one does, in the same session of Ray.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

import maml_ray
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.run_dir import RunDir
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.runs.training_loop import train_on_ray
from tests.benchmarks.collection import physics_alone
from tests.benchmarks.ratios import Ratio
from tests.small_ray import Recorder

WARM_UP = 3
ROUNDS = 60


@dataclass(frozen=True)
class IterationResult:
    """Medians over iterations, in seconds; the shares are of the iterations' own.

    Attributes:
        rollout_actors: that collected.
        learner: where it computed, in words.
        wall_s: of an iteration.
        physics_s: of its env steps, on the cores that collected.
        learn_s: of the meta-update.
        physics_share: physics over wall time: 1 is the physical limit.
        accounted: physics and learner over wall time; the rest is neither.
    """

    rollout_actors: int
    learner: str
    wall_s: float
    physics_s: float
    learn_s: float
    physics_share: Ratio
    accounted: Ratio

    def ratios(self) -> dict[str, Ratio]:
        """Return ratios by name; more is better."""
        return {
            "iteration: share of physics in the wall time": self.physics_share,
            "iteration: share of physics and learner in the wall time": self.accounted,
        }


def measure(settings_file: str, iterations: int) -> IterationResult:
    """Run the settings file for some iterations, between two timings of the physics."""
    settings: Settings = load_settings(
        settings_file,
        overrides=[f"run.iterations={iterations + WARM_UP}", "run.checkpoint_every=1000"],
    )
    recorder = Recorder()
    ray.init(logging_level=logging.WARNING)
    try:
        before = _physics_on_all_cores(settings)
        with tempfile.TemporaryDirectory() as folder:
            train_on_ray(settings, RunDir(Path(folder)), observers=[recorder])
            trained = maml_ray.load(folder).policy
        physics_us = 0.5 * (before + _physics_on_all_cores(settings, trained))
    finally:
        ray.shutdown()
    steady = recorder.records[WARM_UP:]
    actors = min(recorder.starts[0].rollout_actors, settings.meta_batch.tasks)
    wall = np.array([record.timings.wall_s for record in steady])
    learn = np.array([record.timings.learn_s for record in steady])
    physics = np.array([record.update.env_steps * physics_us * 1e-6 / actors for record in steady])
    return IterationResult(
        rollout_actors=actors,
        learner=recorder.starts[0].learner,
        wall_s=float(np.median(wall)),
        physics_s=float(np.median(physics)),
        learn_s=float(np.median(learn)),
        physics_share=Ratio.of(physics / wall),
        accounted=Ratio.of((physics + learn) / wall),
    )


def _physics_on_all_cores(settings: Settings, policy: NumpyPolicy | None = None) -> float:
    """Microseconds per step of the physics, with every CPU of Ray at it at the same time."""
    timed: Any = ray.remote(num_cpus=1)(physics_alone)  # whose annotations know no defaults
    tasks = [
        timed.remote(settings.task.name, settings.meta_batch.episodes, ROUNDS, policy)
        for _ in range(int(ray.cluster_resources()["CPU"]))
    ]
    return float(np.mean(ray.get(tasks, timeout=300)))
