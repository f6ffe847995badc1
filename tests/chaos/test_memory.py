"""A long run uses no more memory than after its first iterations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from maml_ray.config.loading import validate_settings
from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.runs.training_loop import train_on_ray
from tests.small_ray import small_ray

ITERATIONS, WARM_UP = 300, 60
MIB = 2.0**20


@pytest.fixture
def _ray() -> Iterator[None]:
    with small_ray():
        yield


class Scales(Observer):
    """Observer that measures the memory of driver, actors, learner and object store."""

    def __init__(self) -> None:
        self.weights: list[dict[str, float]] = []
        self._processes: dict[str, psutil.Process] = {}

    def on_start(self, report: StartReport) -> None:
        driver = psutil.Process()
        workers = [
            child
            for child in driver.children(recursive=True)
            if child.cmdline()[:1] and child.cmdline()[0].startswith(("ray::Roll", "ray::Learn"))
        ]
        self._processes = {"driver": driver}
        for child in sorted(workers, key=lambda child: child.pid):
            self._processes[f"{child.cmdline()[0].split(':')[2]} {child.pid}"] = child

    def on_iteration(self, record: IterationRecord) -> None:
        # Without the pages of files, which are shared or not as neighbors come and go; and without
        # the object store, which is weighed apart.
        told = {name: process.memory_info() for name, process in self._processes.items()}
        weights = {name: (seen.rss - seen.shared) / MIB for name, seen in told.items()}
        left = ray.available_resources().get("object_store_memory", 0.0)
        weights["object store"] = (150_000_000 - left) / MIB
        self.weights.append(weights)

    def on_event(self, message: str) -> None:
        raise AssertionError(message)


@pytest.mark.soak
@pytest.mark.usefixtures("_ray")
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_over_three_hundred_iterations(tmp_path: Path) -> None:
    settings = validate_settings(
        {
            "run": {"iterations": ITERATIONS},
            "task": {"horizon": 100},
            "policy": {"hidden_sizes": [32]},
            "meta_batch": {"tasks": 4, "episodes": 10},
            "outer": {"epochs": 2},
            "cluster": {"learner_threads": 1},
        }
    )
    folder, scales = RunDir(tmp_path / "run"), Scales()
    log = MetricsLog(folder)
    train_on_ray(settings, folder, observers=[scales, log])
    log.close()
    assert len(scales.weights[0]) == 5
    print(f"\n{os.uname().machine}, MiB at iteration {WARM_UP}, at the end, growth per 100:")
    growths = {}
    for name in scales.weights[0]:
        course = np.array([weights[name] for weights in scales.weights[WARM_UP:]])
        slope = float(np.polyfit(np.arange(len(course)), course, 1)[0]) * 100
        growths[name] = slope
        print(f"{name:24s} {course[0]:8.1f} {course[-1]:8.1f} {slope:+8.2f}")
    # A batch of rollouts is 2 MiB: one kept every hundred iterations would be seen.
    assert max(growths.values()) < 2.0
