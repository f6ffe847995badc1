"""The forecast of the scaling benchmark, on round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.scaling_model import (
    REMEDIES,
    Assumed,
    Parts,
    describe,
    first_to_bind,
    forecast,
)

PARTS = Parts(
    actor_s=0.5,
    fixed_s=0.02,
    driver_s=0.0005,
    fetch_s=0.0001,
    prepare_s=0.001,
    epoch_s=0.002,
    task_bytes=400_000,
    version_bytes=20_000,
)
ASSUMED = Assumed(network=1e9, actors_per_node=64, epochs=4)


def test_each_part_grows_with_the_tasks_and_the_broadcast_with_the_nodes() -> None:
    found = forecast(PARTS, 1000, ASSUMED)
    assert found.driver_s == pytest.approx(0.5)
    assert found.learner_s == pytest.approx(1000 * (0.0001 + 0.001 + 4 * 0.002))
    assert found.gather_s == pytest.approx(0.4)
    assert found.broadcast_s == pytest.approx(16 * 20e-6)  # 1,000 actors are on 16 nodes


def test_what_follows_one_another_adds_up_and_what_overlaps_does_not() -> None:
    found = forecast(PARTS, 1000, ASSUMED)
    assert found.wall_s == pytest.approx(0.5 + 0.02 + 0.5 + 9.1 + 0.4 + 0.00032)
    assert found.efficiency == pytest.approx(0.5 / 10.52032)
    assert found.overlapped_s == pytest.approx(9.5)  # learning is the longer half
    few = forecast(PARTS, 10, ASSUMED)
    assert few.overlapped_s == pytest.approx(0.5 + 0.02 + 0.005 + 20e-6)  # collecting is


def test_the_longest_part_is_named_and_has_a_remedy() -> None:
    assert forecast(PARTS, 1000, ASSUMED).binds == "learner"
    on_gpu = replace(PARTS, prepare_s=0.0, epoch_s=1e-5)
    assert forecast(on_gpu, 1000, ASSUMED).binds == "driver"
    wide = replace(on_gpu, task_bytes=10e6)
    assert forecast(wide, 1000, ASSUMED).binds == "gather"
    assert set(REMEDIES) == set(forecast(PARTS, 1, ASSUMED).shared)


def test_the_first_part_to_take_a_tenth_of_the_work_comes_first() -> None:
    reached = first_to_bind(PARTS, ASSUMED)
    assert list(reached) == ["learner", "driver", "gather", "broadcast"]
    assert reached["learner"] == 5  # 0.05 s at 9.1 ms a task
    assert reached["driver"] == 100
    assert reached["gather"] == 125


def test_the_table_says_what_was_assumed() -> None:
    told = describe(PARTS, (64, 1000), ASSUMED)
    assert "8 Gbit/s at each node, 64 actors a node, outer.epochs 4" in told
    assert "the learner with 5 actors; what moves it: a GPU" in told
