from __future__ import annotations

from typing import Any

import pytest

from maml_ray.config.sections import ClusterSettings
from maml_ray.runtime.capacity import Capacity, autoscaler_demand, count_actor_slots


def node(name: str, *, cpus: float | None = 2.0, alive: bool = True) -> dict[str, Any]:
    resources = {"memory": 1e9} if cpus is None else {"CPU": cpus}
    return {"NodeID": name, "Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("most", "nodes", "wanted"),
    [
        (None, [node("a"), node("b", cpus=3.0)], 5),
        (None, [node("a"), node("b", alive=False)], 2),
        (None, [node("head", cpus=0.0), node("b", cpus=None)], 0),
        (3, [node("a"), node("b")], 3),
        (3, [node("a")], 2),
        (None, [node("a", cpus=1.5)], 1),
    ],
)
def test_one_slot_per_cpu_of_alive_nodes_up_to_the_limit(
    most: int | None, nodes: list[dict[str, Any]], wanted: int
) -> None:
    assert count_actor_slots(ClusterSettings(rollout_actors=most), nodes) == wanted


def test_the_cluster_is_queried_only_at_intervals_and_after_a_death() -> None:
    queries: list[int] = []

    def nodes() -> list[dict[str, Any]]:
        queries.append(1)
        return [node("a", cpus=float(len(queries)))]

    capacity = Capacity(ClusterSettings(), nodes, tuple)
    assert [capacity.target_actors() for _ in range(3)] == [1, 1, 1]
    capacity.invalidate()
    assert capacity.target_actors() == 2


def test_a_draining_node_has_no_slots_and_is_remembered() -> None:
    draining = {"b"}
    nodes = [node("a"), node("b")]
    capacity = Capacity(ClusterSettings(), lambda: nodes, lambda: draining)
    assert capacity.target_actors() == 2
    assert capacity.is_draining("b")
    assert not capacity.is_draining("a")
    assert not capacity.is_draining(None)
    assert capacity.alive_nodes() == {"a", "b"}
    draining.clear()  # as Ray tells it once the node is gone
    nodes[1] = node("b", alive=False)
    capacity.invalidate()
    assert capacity.target_actors() == 2
    assert capacity.is_draining("b")


def test_alive_nodes_are_returned_by_id() -> None:
    capacity = Capacity(ClusterSettings(), lambda: [node("a"), node("b", alive=False)], tuple)
    assert capacity.alive_nodes() == {"a"}


def test_the_target_is_the_larger_of_autoscaler_demand_and_slots() -> None:
    capacity = Capacity(
        ClusterSettings(), lambda: [node("a", cpus=2.0)], tuple, autoscaler_actors=3
    )
    assert (capacity.num_slots(), capacity.target_actors()) == (2, 3)
    capacity = Capacity(
        ClusterSettings(), lambda: [node("a", cpus=8.0)], tuple, autoscaler_actors=3
    )
    assert (capacity.num_slots(), capacity.target_actors()) == (8, 8)


@pytest.mark.parametrize(
    ("settings", "demanded"),
    [
        ({}, 0),
        ({"rollout_actors": 30}, 0),
        ({"autoscaler": True}, 10),
        ({"autoscaler": True, "rollout_actors": 30}, 30),
        ({"autoscaler": True, "min_rollout_actors": 12}, 12),
    ],
)
def test_autoscaler_demand_is_the_setting_or_one_actor_per_task(
    settings: dict[str, Any], demanded: int
) -> None:
    assert autoscaler_demand(ClusterSettings.model_validate(settings), num_tasks=10) == demanded
