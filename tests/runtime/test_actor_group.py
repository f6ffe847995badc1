"""Who is on the group as the cluster changes: actors and cluster are stand-ins, no Ray runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import ClusterSettings, Settings
from maml_ray.runtime.actor_group import ActorGroup
from maml_ray.runtime.actor_handle import ActorHandle
from maml_ray.runtime.actors import ActorLocation
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.run_context import RunContext


class StandIn:
    """An actor of which the next answer is ``answers``: a node's id, or an error."""

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.ready = SimpleNamespace(remote=lambda: self)


@dataclass
class World:
    """A cluster of nodes with a CPU each, and what the group did and told."""

    nodes: set[str] = field(default_factory=lambda: {"a", "b"})
    draining: set[str] = field(default_factory=set)
    failures: list[FailureReport] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    begun: int = 0

    def look(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": {"CPU": 1.0}} for node in self.nodes]

    def get(self, ref: StandIn, timeout: float) -> ActorLocation:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ActorLocation(ref.answer, "host", 1)

    def start(self, existing: Iterable[ActorHandle]) -> ActorHandle:
        actor = StandIn("")
        self.begun += 1
        return ActorHandle(f"rollout-{self.begun}", self.begun, actor, actor.ready.remote(), 0.0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    stand_in = SimpleNamespace(get=made.get, kill=made.killed.append)
    monkeypatch.setattr("maml_ray.runtime.actor_group.ray", stand_in)
    monkeypatch.setattr("maml_ray.runtime.actor_group.ActorFactory", lambda *_: made)
    return made


def group_of(world: World, **cluster: Any) -> tuple[ActorGroup, Capacity]:
    settings = Settings(cluster=ClusterSettings(**cluster))
    capacity = Capacity(settings.cluster, world.look, lambda: world.draining)
    context = RunContext("", capacity, world.failures.append, world.killed.append, lambda: None)
    return ActorGroup(settings, context), capacity


def up(group: ActorGroup, **nodes: str | Exception) -> None:
    """The starting actors of these names answer."""
    for handle in group.starting:
        name = handle.name.replace("-", "_")
        if name in nodes:
            handle.actor.answer = nodes[name]
            group.on_ready(handle)


def names(handles: Iterable[ActorHandle]) -> list[str]:
    return [handle.name for handle in handles]


def changed(capacity: Capacity, group: ActorGroup) -> None:
    capacity.invalidate()
    group.scale_to_cluster()


def test_an_announced_node_is_left_once_its_actor_is_idle_and_another_is_up(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    up(group, rollout_1="a", rollout_2="b")
    busy, _ = group
    busy.work.append(SimpleNamespace())  # type: ignore[arg-type]
    world.draining.add("a")
    changed(capacity, group)
    assert names(group) == ["rollout-1", "rollout-2"]  # it does what it has
    assert names(group.available) == ["rollout-2"]  # and gets nothing new
    busy.work.clear()
    group.scale_to_cluster()
    assert names(group) == ["rollout-2"]
    assert world.failures == [FailureReport(Failure.PREEMPTED, "", "rollout-1", 0, "it was idle")]


def test_where_nobody_else_is_up_an_announced_node_is_worked_on(world: World) -> None:
    world.nodes = {"a"}
    group, capacity = group_of(world)
    group.scale_to_cluster()
    up(group, rollout_1="a")
    world.draining.add("a")
    changed(capacity, group)
    assert names(group.available) == ["rollout-1"]
    world.nodes.add("b")
    changed(capacity, group)
    assert names(group) == ["rollout-1", "rollout-2"]  # there is room for one that stays
    up(group, rollout_2="b")
    group.scale_to_cluster()
    assert names(group) == ["rollout-2"]


def test_a_cluster_that_shrinks_takes_those_that_wait_for_a_cpu(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    up(group, rollout_1="a")
    world.nodes.remove("b")
    changed(capacity, group)
    assert names(group) == ["rollout-1"]
    assert not world.failures


def test_a_node_that_lost_an_actor_is_doubted_and_no_other(world: World) -> None:
    group, _ = group_of(world)
    world.nodes = {"a", "b", "c"}
    group.scale_to_cluster()
    up(group, rollout_1="a", rollout_2="b", rollout_3="a")
    dead, _, beside = group
    group.remove(dead)
    group.recheck_node(dead.node_id)
    assert names(group.available) == ["rollout-2"]
    up(group, rollout_3=ActorDiedError())
    assert beside not in group
    (seen,) = world.failures
    assert (seen.failure, seen.work, seen.attempts) == (Failure.ACTOR_DIED, "", 0)


def test_starts_that_failed_together_are_one_failure_in_a_row(world: World) -> None:
    group, _ = group_of(world)
    group.scale_to_cluster()
    up(group, rollout_1=ActorDiedError(), rollout_2=ActorDiedError())
    group.scale_to_cluster()
    for handle in group.starting:
        handle.pinged_at = float("inf")  # after the last failure
    up(group, rollout_3=ActorDiedError())
    told = [(seen.failure, seen.attempts) for seen in world.failures]
    assert told == [(Failure.START_FAILED, 1), (Failure.START_FAILED, 1), (Failure.START_FAILED, 2)]


def test_an_actor_whose_node_was_announced_has_been_pre_empted(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    up(group, rollout_1="a", rollout_2="b")
    world.draining.add("a")
    changed(capacity, group)
    world.draining.clear()
    capacity.invalidate()
    one, other = (
        ActorHandle(name, 0, None, None, 0.0, ActorLocation(name, "host", 1)) for name in "ab"
    )
    assert group.classify_death(one, ActorDiedError()) is Failure.PREEMPTED
    assert group.classify_death(other, ActorDiedError()) is Failure.ACTOR_DIED


def test_actors_that_do_not_answer_in_time_are_let_go(world: World) -> None:
    group, _ = group_of(world, start_timeout_s=10.0)
    group.scale_to_cluster()
    first, second = group
    first.pinged_at, second.pinged_at = float("-inf"), float("inf")
    group.stop_late_starts()
    assert names(group) == ["rollout-2"]


def test_nobody_up_is_borne_for_so_long(world: World) -> None:
    group, _ = group_of(world, empty_timeout_s=1e-6)
    group.require_any_alive()
    with pytest.raises(TrainingFailed, match=r"cluster\.empty_timeout_s"):
        group.require_any_alive()
