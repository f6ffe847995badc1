"""A standby learner on other nodes, and random deaths of the learner and its standby."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from maml_ray.persistence.records import IterationRecord
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from tests.chaos.learners import hit, learners, location_of
from tests.chaos.machine import Machine
from tests.chaos.watched import Watcher, assert_undisturbed, settings

WITH_STANDBY = {"standby_learner": True}


@pytest.mark.cluster
def test_a_standby_on_another_node_survives_the_learners_node(
    cluster: Machine, tmp_path: Path
) -> None:
    """Afterwards a single GPU is left: another standby waits for one, until the learner dies."""
    nodes = {cluster.add_node(cpus=0, gpus=1) for _ in range(2)}
    places: list[str] = []

    def act(record: IterationRecord) -> None:
        if record.iteration == 0:
            places.extend(location_of(name).node_id for name in sorted(learners()))
            cluster.remove_nodes({places[0]})
        if record.iteration == 2:
            hit(signal.SIGKILL, "learner-replacement-1")

    chosen, folder = settings(iterations=5, cluster=WITH_STANDBY), RunDir(tmp_path / "run")
    watcher = Watcher(act)
    train_on_ray(chosen, folder, observers=[watcher])
    assert set(places) == nodes
    restarts = [record.faults.learner_restarts for record in watcher.records]
    assert restarts == [0, 1, 1, 2, 2]
    assert_undisturbed(chosen, folder)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_random_deaths_and_hangs_of_learner_and_standby(
    cluster: Machine, tmp_path: Path, seed: int
) -> None:
    rng, stopped, kinds = random.Random(seed), dict[str, int](), set[tuple[signal.Signals, int]]()

    def act(record: IterationRecord) -> None:
        if record.iteration % 2:
            return
        # Nobody notices that a standby hangs before it is needed; it would not say where it is.
        names = sorted(learners() - stopped.keys())
        if rng.random() < 0.7:  # otherwise a standby may be starting
            for name in names:
                location_of(name)
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
        victims = rng.sample(names, rng.randint(1, len(names)))
        pids = hit(number, *victims)
        kinds.add((number, len(victims)))
        if number == signal.SIGSTOP:
            stopped.update(zip(victims, pids, strict=True))

    limits = {**WITH_STANDBY, "task_timeout_s": 20.0}
    faults = {"infrastructure": 1000}
    chosen = settings(iterations=40, cluster=limits, faults=faults)
    folder, watcher = RunDir(tmp_path / "run"), Watcher(act)
    try:
        train_on_ray(chosen, folder, observers=[watcher])
    finally:
        for pid in filter(psutil.pid_exists, stopped.values()):
            os.kill(pid, signal.SIGKILL)
    assert len(watcher.records) == 40
    assert watcher.records[-1].faults.learner_restarts >= 5
    assert len(kinds) >= 3
    assert_undisturbed(chosen, folder)
