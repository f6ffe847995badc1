"""Nodes that come and go under a run: actors follow them, and the result does not."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from maml_ray.checkpoint import load_newest
from maml_ray.config import Settings, validate_settings
from maml_ray.distributed.pool import Collected, RolloutPool
from maml_ray.errors import TrainingFailed
from maml_ray.records import IterationRecord, StartReport
from maml_ray.run_folder import RunFolder
from maml_ray.storage import LocalStorage
from maml_ray.training import train
from tests.chaos.machine import Machine, machine
from tests.chaos.undisturbed import fingerprint, undisturbed


@pytest.fixture
def cluster() -> Iterator[Machine]:
    with machine(nodes=1) as made:
        ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield made
        finally:
            ray.shutdown()


class Watcher:
    """An observer that does something after every iteration."""

    def __init__(self, then: Callable[[IterationRecord], None] = lambda record: None) -> None:
        self.records: list[IterationRecord] = []
        self.events: list[str] = []
        self._then = then

    def on_start(self, report: StartReport) -> None:
        pass

    def on_iteration(self, record: IterationRecord) -> None:
        self.records.append(record)
        self._then(record)

    def on_event(self, message: str) -> None:
        self.events.append(message)

    def close(self) -> None:
        pass


def settings(iterations: int, **cluster: Any) -> Settings:
    return validate_settings(
        {
            "run": {"seed": 11, "iterations": iterations},
            # Beyond 100 KB, where Ray keeps an answer on its node and not with the driver.
            "task": {"horizon": 100},
            "policy": {"hidden_sizes": [16]},
            "meta_batch": {"tasks": 4, "episodes": 10},
            "outer": {"epochs": 2},
            "cluster": {"learner_threads": 1, **cluster},
        }
    )


def assert_undisturbed(chosen: Settings, folder: RunFolder) -> None:
    found = load_newest(LocalStorage(folder.path))[0].learner
    assert fingerprint(found.parameters) == fingerprint(undisturbed(chosen).parameters)


def test_actors_follow_the_nodes_and_rollouts_that_went_with_one_are_made_again(
    cluster: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iteration 1 gains a node; 3 loses the one that holds rollouts, before the update."""
    chosen, folder = settings(iterations=5), RunFolder(tmp_path / "run")
    collect = RolloutPool.collect
    batches: list[Collected] = []

    def collecting(pool: RolloutPool, *args: Any) -> Collected:
        if len(batches) == 1:
            cluster.add_node()
            pool._capacity.look_again()
        collected = collect(pool, *args)
        batches.append(collected)
        if len(batches) == 4:
            cluster.remove_nodes({one.node_id for one in collected.rollouts})
            cluster.add_node()
        return collected

    monkeypatch.setattr(RolloutPool, "collect", collecting)
    watcher = Watcher()
    train(chosen, folder, observers=[watcher])
    assert [record.faults.actors for record in watcher.records][:2] == [1, 2]
    assert len(batches) == 6
    lost = watcher.records[3].faults
    assert lost.lost >= 4
    assert lost.used == 4
    assert any("rollouts" in event for event in watcher.events)
    assert_undisturbed(chosen, folder)


def test_a_cluster_without_nodes_is_waited_for_and_given_up(
    cluster: Machine, tmp_path: Path
) -> None:
    def leave(record: IterationRecord) -> None:
        cluster.remove_node(random.Random(0))

    chosen = settings(iterations=3, empty_timeout_s=1.0)
    with pytest.raises(TrainingFailed, match=r"waiting for a node .*cluster\.empty_timeout_s"):
        train(chosen, RunFolder(tmp_path / "run"), observers=[Watcher(leave)])
