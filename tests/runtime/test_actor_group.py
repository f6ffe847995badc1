"""Actors of a group as the cluster changes, with a fake cluster and without Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from maml_ray.common.errors import TrainingFailed, UserCodeFailed
from maml_ray.config.sections import ClusterSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.runtime.actor_group import ActorGroup
from maml_ray.runtime.actor_handle import ActorHandle
from maml_ray.runtime.actors import ActorLocation
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.run_context import RunContext


class FakeActor:
    """A fake actor whose next reply is ``answer``: a node's id, or an error."""

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.ready = SimpleNamespace(remote=lambda: self)


@dataclass
class World:
    """A fake cluster of one-CPU nodes that records what the group does."""

    nodes: set[str] = field(default_factory=lambda: {"a", "b"})
    draining: set[str] = field(default_factory=set)
    failures: list[FailureReport] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    num_started: int = 0

    def list_nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": {"CPU": 1.0}} for node in self.nodes]

    def get(self, ref: FakeActor, timeout: float) -> ActorLocation:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ActorLocation(ref.answer, "host", 1)

    def start(self, existing: Iterable[ActorHandle]) -> ActorHandle:
        actor = FakeActor("")
        self.num_started += 1
        return ActorHandle(
            f"rollout-{self.num_started}", self.num_started, actor, actor.ready.remote(), 0.0
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    fake_ray = SimpleNamespace(get=world.get, kill=world.killed.append)
    monkeypatch.setattr("maml_ray.runtime.actor_group.ray", fake_ray)
    monkeypatch.setattr("maml_ray.runtime.actor_group.ActorFactory", lambda *_: world)
    return world


def group_of(world: World, **cluster: Any) -> tuple[ActorGroup, Capacity]:
    settings = Settings(cluster=ClusterSettings(**cluster))
    capacity = Capacity(settings.cluster, world.list_nodes, lambda: world.draining)
    context = RunContext("", capacity, world.failures.append, world.killed.append, lambda: None)
    return ActorGroup(settings, context), capacity


def reply(group: ActorGroup, **nodes: str | Exception) -> None:
    """Let the starting actors of these names reply."""
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


def test_an_idle_actor_leaves_a_draining_node_once_another_is_available(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    reply(group, rollout_1="a", rollout_2="b")
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


def test_a_draining_node_is_used_while_no_other_actor_is_ready(world: World) -> None:
    world.nodes = {"a"}
    group, capacity = group_of(world)
    group.scale_to_cluster()
    reply(group, rollout_1="a")
    world.draining.add("a")
    changed(capacity, group)
    assert names(group.available) == ["rollout-1"]
    world.nodes.add("b")
    changed(capacity, group)
    assert names(group) == ["rollout-1", "rollout-2"]  # there is room for one that stays
    reply(group, rollout_2="b")
    group.scale_to_cluster()
    assert names(group) == ["rollout-2"]


def test_a_shrinking_cluster_removes_pending_actors(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    reply(group, rollout_1="a")
    world.nodes.remove("b")
    changed(capacity, group)
    assert names(group) == ["rollout-1"]
    assert not world.failures


def test_only_the_node_that_lost_an_actor_is_rechecked(world: World) -> None:
    group, _ = group_of(world)
    world.nodes = {"a", "b", "c"}
    group.scale_to_cluster()
    reply(group, rollout_1="a", rollout_2="b", rollout_3="a")
    dead, _, beside = group
    group.remove(dead)
    group.recheck_node(dead.node_id)
    assert names(group.available) == ["rollout-2"]
    reply(group, rollout_3=ActorDiedError())
    assert beside not in group
    (report,) = world.failures
    assert (report.failure, report.work, report.attempts) == (Failure.ACTOR_DIED, "", 0)


def test_starts_that_fail_together_count_as_one_consecutive_failure(world: World) -> None:
    group, _ = group_of(world)
    group.scale_to_cluster()
    reply(group, rollout_1=ActorDiedError(), rollout_2=ActorDiedError())
    group.scale_to_cluster()
    for handle in group.starting:
        handle.pinged_at = float("inf")  # after the last failure
    reply(group, rollout_3=ActorDiedError())
    outcomes = [(report.failure, report.attempts) for report in world.failures]
    assert outcomes == [
        (Failure.START_FAILED, 1),
        (Failure.START_FAILED, 1),
        (Failure.START_FAILED, 2),
    ]


def test_code_of_the_user_that_only_the_driver_can_import_ends_the_run(world: World) -> None:
    group, _ = group_of(world)
    group.scale_to_cluster()
    missing = SettingsError("task.name = 'mine:X' cannot be loaded: ModuleNotFoundError")
    with pytest.raises(UserCodeFailed, match=r"^rollout-1 could not start: task.name = 'mine:X'.*"):
        reply(group, rollout_1=RayTaskError("ready", "pages of traceback", missing))
    with pytest.raises(UserCodeFailed, match=r"install the same code on every node"):
        reply(group, rollout_2=RayTaskError("ready", "pages of traceback", missing))
    assert not world.failures


def test_death_on_a_drained_node_is_a_preemption(world: World) -> None:
    group, capacity = group_of(world)
    group.scale_to_cluster()
    reply(group, rollout_1="a", rollout_2="b")
    world.draining.add("a")
    changed(capacity, group)
    world.draining.clear()
    capacity.invalidate()
    one, other = (
        ActorHandle(name, 0, None, None, 0.0, ActorLocation(name, "host", 1)) for name in "ab"
    )
    assert group.classify_death(one, ActorDiedError()) is Failure.PREEMPTED
    assert group.classify_death(other, ActorDiedError()) is Failure.ACTOR_DIED


def test_actors_that_do_not_answer_in_time_are_removed(world: World) -> None:
    group, _ = group_of(world, start_timeout_s=10.0)
    group.scale_to_cluster()
    first, second = group
    first.pinged_at, second.pinged_at = float("-inf"), float("inf")
    group.stop_late_starts()
    assert names(group) == ["rollout-2"]


def test_no_ready_actor_fails_the_run_after_a_deadline(world: World) -> None:
    group, _ = group_of(world, empty_timeout_s=1e-6)
    group.require_any_alive()
    with pytest.raises(TrainingFailed, match=r"cluster\.empty_timeout_s"):
        group.require_any_alive()
