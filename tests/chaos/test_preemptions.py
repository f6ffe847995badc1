"""Draining nodes are left, counted as preemptions, and do not change the result."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from maml_ray.persistence.records import IterationRecord
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.actors import ActorLocation
from maml_ray.runtime.rollout_pool import RolloutPool
from tests.chaos.machine import Machine
from tests.chaos.watched import Watcher, assert_undisturbed, settings

NO_OTHER = {"infrastructure": 0, "preemptions": 10}
"""Fault budgets under which any failure other than a preemption ends the run."""


@pytest.mark.cluster
def test_a_draining_node_is_left_without_loss_once_another_is_available(
    cluster: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node drains in iteration 1 while its actor works; another is added in iteration 2."""
    chosen, folder = settings(iterations=5, faults=NO_OTHER), RunDir(tmp_path / "run")
    (first,) = cluster.ids
    cluster.add_node(cpus=0, gpus=1)  # for the learner, which would be anywhere otherwise
    dispatch = RolloutPool.dispatch
    pools: list[RolloutPool] = []

    def dispatching(pool: RolloutPool) -> None:
        dispatch(pool)
        if len(watcher.records) == 1 and not pools:
            assert any(handle.work for handle in pool._actors)
            cluster.announce(first)
            pool._capacity.invalidate()
            pools.append(pool)

    def another(record: IterationRecord) -> None:
        if record.iteration == 2:
            cluster.add_node()
            pools[0]._capacity.invalidate()
            locations.extend(pools[0].wait_until_ready())

    locations: list[ActorLocation] = []
    monkeypatch.setattr(RolloutPool, "dispatch", dispatching)
    watcher = Watcher(another)
    train_on_ray(chosen, folder, observers=[watcher])
    assert [location.node_id for location in locations] == [cluster.ids[-1]]
    assert [record.faults.lost for record in watcher.records] == [0] * 5
    assert [record.faults.failures for record in watcher.records] == [0, 0, 0, 1, 1]
    (told,) = watcher.preempted
    assert told.startswith("rollout-0 is lost: ")
    assert_undisturbed(chosen, folder)


@pytest.mark.cluster
def test_a_draining_node_that_goes_with_work_in_flight_is_a_preemption(
    cluster: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In iteration 1 work is in flight; in iteration 3 the node holds unused rollouts."""
    chosen, folder = settings(iterations=5, faults=NO_OTHER), RunDir(tmp_path / "run")
    cluster.add_node(cpus=0, gpus=1)  # for the learner
    dispatch, finish = RolloutPool.dispatch, RolloutPool.finish
    gone: list[str] = []

    def take_away(pool: RolloutPool, node_id: str) -> None:
        cluster.announce(node_id)
        pool._capacity.invalidate()
        pool._capacity.refresh()
        cluster.remove_nodes({node_id})
        cluster.add_node()
        gone.append(node_id)

    def dispatching(pool: RolloutPool) -> None:
        dispatch(pool)
        if len(watcher.records) == 1 and not gone:
            (handle,) = (handle for handle in pool._actors if handle.work)
            assert handle.location is not None
            os.kill(handle.location.pid, signal.SIGSTOP)  # it will not have finished by then
            take_away(pool, handle.location.node_id)

    def finishing(pool: RolloutPool, *args: Any) -> Any:
        collected = finish(pool, *args)
        if len(watcher.records) == 3 and len(gone) == 1:
            take_away(pool, collected.rollouts[0].node_id)
        return collected

    monkeypatch.setattr(RolloutPool, "dispatch", dispatching)
    monkeypatch.setattr(RolloutPool, "finish", finishing)
    watcher = Watcher()
    train_on_ray(chosen, folder, observers=[watcher])
    assert len(gone) == 2
    faults = [record.faults for record in watcher.records]
    assert faults[1].lost >= 1
    assert faults[3].lost >= 4
    assert all(figures.used == 4 for figures in faults)
    assert faults[-1].failures == len(watcher.preempted) >= 2
    assert_undisturbed(chosen, folder)


@pytest.mark.cluster
def test_losing_the_learners_draining_node_is_a_preemption(
    cluster: Machine, tmp_path: Path
) -> None:
    chosen = settings(iterations=3, faults=NO_OTHER)
    folder, learners_node = RunDir(tmp_path / "run"), cluster.add_node(cpus=0, gpus=1)

    def take_away(record: IterationRecord) -> None:
        if record.iteration == 0:
            cluster.announce(learners_node, within_s=0.0)
            cluster.remove_nodes({learners_node})
            cluster.add_node(cpus=0, gpus=1)

    watcher = Watcher(take_away)
    train_on_ray(chosen, folder, observers=[watcher])
    assert [record.faults.learner_restarts for record in watcher.records] == [0, 1, 1]
    assert [event for event in watcher.preempted if "the meta-update of version 1" in event]
    assert_undisturbed(chosen, folder)
