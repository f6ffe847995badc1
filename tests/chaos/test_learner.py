"""The learner dies in the middle of an update, alone or with its node."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.learner_handle import LearnerHandle
from tests.chaos.machine import Machine
from tests.chaos.watched import Watcher, assert_undisturbed, settings


def wait_until_in_the_middle(learner: LearnerHandle) -> None:
    """Wait until the learner's heartbeat shows that an update is in progress."""
    while True:
        heartbeat = ray.get(learner._active.actor.heartbeat.remote(), timeout=60)
        if heartbeat.work is not None:
            return


@pytest.mark.cluster
def test_a_learner_that_dies_in_an_update_costs_that_update_and_nothing_else(
    cluster: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is killed in iteration 1, its node removed in iteration 2."""
    chosen, folder = settings(iterations=4, outer={"epochs": 200}), RunDir(tmp_path / "run")
    nodes = [cluster.add_node(cpus=0, gpus=1)]  # the learner asks for the GPU: it has to be there
    wait = LearnerHandle._wait_for_update
    hit: list[int] = []

    def waiting(learner: LearnerHandle, *refs: Any, **others: Any) -> Any:
        version = learner.state.version
        if version in (1, 2) and version not in hit:
            hit.append(version)
            location = ray.get(learner._active.location_ref, timeout=60)
            assert location.node_id == nodes[-1]
            wait_until_in_the_middle(learner)
            if version == 1:
                os.kill(location.pid, signal.SIGKILL)
            else:
                cluster.remove_nodes({location.node_id})
                nodes.append(cluster.add_node(cpus=0, gpus=1))
        return wait(learner, *refs, **others)

    monkeypatch.setattr(LearnerHandle, "_wait_for_update", waiting)
    watcher = Watcher()
    train_on_ray(chosen, folder, observers=[watcher])
    assert hit == [1, 2]
    assert [record.faults.learner_restarts for record in watcher.records] == [0, 1, 2, 2]
    assert [record.faults.lost for record in watcher.records] == [0, 0, 0, 0]
    assert_undisturbed(chosen, folder)
