"""Nodes that come and go during a run: the actors follow them, the result does not change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from maml_ray.common.errors import TrainingFailed
from maml_ray.persistence.records import IterationRecord
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.rollout_pool import CollectedBatch, RolloutPool
from tests.chaos.machine import Machine
from tests.chaos.watched import Watcher, assert_undisturbed, settings


@pytest.mark.cluster
def test_actors_follow_the_nodes_and_lost_rollouts_are_collected_again(
    cluster: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is added in iteration 1; the one holding rollouts is removed in iteration 3."""
    chosen, folder = settings(iterations=5), RunDir(tmp_path / "run")
    submit, finish = RolloutPool.submit, RolloutPool.finish
    batches: list[CollectedBatch] = []

    def submitting(pool: RolloutPool, *args: Any) -> Any:
        if len(batches) == 1:
            cluster.add_node()
            pool._capacity.invalidate()
            pool.wait_until_ready()
        return submit(pool, *args)

    def finishing(pool: RolloutPool, *args: Any) -> CollectedBatch:
        collected = finish(pool, *args)
        batches.append(collected)
        if len(batches) == 4:
            cluster.remove_nodes({one.node_id for one in collected.rollouts})
            cluster.add_node()
        return collected

    monkeypatch.setattr(RolloutPool, "submit", submitting)
    monkeypatch.setattr(RolloutPool, "finish", finishing)
    watcher = Watcher()
    train_on_ray(chosen, folder, observers=[watcher])
    assert [record.faults.actors for record in watcher.records][:2] == [1, 2]
    assert len(batches) == 6
    lost = watcher.records[3].faults
    assert lost.lost >= 4
    assert lost.used == 4
    assert any("rollouts" in event for event in watcher.events)
    assert_undisturbed(chosen, folder)


def test_a_cluster_without_nodes_fails_the_run_after_a_deadline(
    cluster: Machine, tmp_path: Path
) -> None:
    def leave(record: IterationRecord) -> None:
        cluster.remove_node(random.Random(0))

    chosen = settings(iterations=3, cluster={"empty_timeout_s": 1.0})
    with pytest.raises(TrainingFailed, match=r"waiting for a node .*cluster\.empty_timeout_s"):
        train_on_ray(chosen, RunDir(tmp_path / "run"), observers=[Watcher(leave)])


def test_four_actors_give_the_same_bits_as_one_process(cluster: Machine, tmp_path: Path) -> None:
    cluster.remove_node(random.Random(0))
    cluster.add_node(cpus=4)
    chosen = settings(iterations=2, meta_batch={"tasks": 8, "episodes": 3})
    folder, watcher = RunDir(tmp_path / "run"), Watcher()
    train_on_ray(chosen, folder, observers=[watcher])
    assert [record.faults.actors for record in watcher.records] == [4, 4]
    assert_undisturbed(chosen, folder)
