"""Who is on the roster as the cluster changes: actors and cluster are stand-ins, no Ray runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import ClusterSettings, Settings
from maml_ray.runtime.actor_group import Roster
from maml_ray.runtime.actor_handle import Member
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, Observation
from maml_ray.runtime.heartbeat import Place


class StandIn:
    """An actor of which the next answer is ``answers``: a node's id, or an error."""

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.ready = SimpleNamespace(remote=lambda: self)


@dataclass
class World:
    """A cluster of nodes with a CPU each, and what the roster did and told."""

    nodes: set[str] = field(default_factory=lambda: {"a", "b"})
    draining: set[str] = field(default_factory=set)
    settled: list[Observation] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    begun: int = 0

    def look(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": {"CPU": 1.0}} for node in self.nodes]

    def get(self, ref: StandIn, timeout: float) -> Place:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return Place(ref.answer, "host", 1)

    def recruit(self, members: Iterable[Member]) -> Member:
        actor = StandIn("")
        self.begun += 1
        return Member(f"rollout-{self.begun}", self.begun, actor, actor.ready.remote(), 0.0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    stand_in = SimpleNamespace(get=made.get, kill=made.killed.append)
    monkeypatch.setattr("maml_ray.runtime.actor_group.ray", stand_in)
    monkeypatch.setattr("maml_ray.runtime.actor_group.Recruiter", lambda *_: made)
    return made


def roster_of(world: World, **cluster: Any) -> tuple[Roster, Capacity]:
    settings = Settings(cluster=ClusterSettings(**cluster))
    capacity = Capacity(settings.cluster, world.look, lambda: world.draining)
    told_of, on_event = world.settled.append, world.killed.append
    return Roster(settings, "", capacity, settle=told_of, on_event=on_event), capacity


def up(roster: Roster, **nodes: str | Exception) -> None:
    """The starting actors of these names answer."""
    for member in roster.starting:
        name = member.name.replace("-", "_")
        if name in nodes:
            member.actor.answer = nodes[name]
            roster.greet(member)


def names(members: Iterable[Member]) -> list[str]:
    return [member.name for member in members]


def changed(capacity: Capacity, roster: Roster) -> None:
    capacity.look_again()
    roster.follow_cluster()


def test_an_announced_node_is_left_once_its_actor_is_idle_and_another_is_up(world: World) -> None:
    roster, capacity = roster_of(world)
    roster.follow_cluster()
    up(roster, rollout_1="a", rollout_2="b")
    busy, _ = roster
    busy.work.append(SimpleNamespace())  # type: ignore[arg-type]
    world.draining.add("a")
    changed(capacity, roster)
    assert names(roster) == ["rollout-1", "rollout-2"]  # it does what it has
    assert names(roster.at_work) == ["rollout-2"]  # and gets nothing new
    busy.work.clear()
    roster.follow_cluster()
    assert names(roster) == ["rollout-2"]
    assert world.settled == [Observation(Failure.PREEMPTED, "", "rollout-1", 0, "it was idle")]


def test_where_nobody_else_is_up_an_announced_node_is_worked_on(world: World) -> None:
    world.nodes = {"a"}
    roster, capacity = roster_of(world)
    roster.follow_cluster()
    up(roster, rollout_1="a")
    world.draining.add("a")
    changed(capacity, roster)
    assert names(roster.at_work) == ["rollout-1"]
    world.nodes.add("b")
    changed(capacity, roster)
    assert names(roster) == ["rollout-1", "rollout-2"]  # there is room for one that stays
    up(roster, rollout_2="b")
    roster.follow_cluster()
    assert names(roster) == ["rollout-2"]


def test_a_cluster_that_shrinks_takes_those_that_wait_for_a_cpu(world: World) -> None:
    roster, capacity = roster_of(world)
    roster.follow_cluster()
    up(roster, rollout_1="a")
    world.nodes.remove("b")
    changed(capacity, roster)
    assert names(roster) == ["rollout-1"]
    assert not world.settled


def test_a_node_that_lost_an_actor_is_doubted_and_no_other(world: World) -> None:
    roster, _ = roster_of(world)
    world.nodes = {"a", "b", "c"}
    roster.follow_cluster()
    up(roster, rollout_1="a", rollout_2="b", rollout_3="a")
    dead, _, beside = roster
    roster.dismiss(dead)
    roster.doubt(dead.node_id)
    assert names(roster.at_work) == ["rollout-2"]
    up(roster, rollout_3=ActorDiedError())
    assert beside not in roster
    (seen,) = world.settled
    assert (seen.failure, seen.work, seen.attempts) == (Failure.ACTOR_DIED, "", 0)


def test_starts_that_failed_together_are_one_failure_in_a_row(world: World) -> None:
    roster, _ = roster_of(world)
    roster.follow_cluster()
    up(roster, rollout_1=ActorDiedError(), rollout_2=ActorDiedError())
    roster.follow_cluster()
    for member in roster.starting:
        member.began = float("inf")  # after the last failure
    up(roster, rollout_3=ActorDiedError())
    told = [(seen.failure, seen.attempts) for seen in world.settled]
    assert told == [(Failure.START_FAILED, 1), (Failure.START_FAILED, 1), (Failure.START_FAILED, 2)]


def test_an_actor_whose_node_was_announced_has_been_pre_empted(world: World) -> None:
    roster, capacity = roster_of(world)
    roster.follow_cluster()
    up(roster, rollout_1="a", rollout_2="b")
    world.draining.add("a")
    changed(capacity, roster)
    world.draining.clear()
    capacity.look_again()
    one, other = (Member(name, 0, None, None, 0.0, Place(name, "host", 1)) for name in "ab")
    assert roster.how_it_died(one, ActorDiedError()) is Failure.PREEMPTED
    assert roster.how_it_died(other, ActorDiedError()) is Failure.ACTOR_DIED


def test_actors_that_do_not_answer_in_time_are_let_go(world: World) -> None:
    roster, _ = roster_of(world, start_timeout_s=10.0)
    roster.follow_cluster()
    first, second = roster
    first.began, second.began = float("-inf"), float("inf")
    roster.give_up_late_starts()
    assert names(roster) == ["rollout-2"]


def test_nobody_up_is_borne_for_so_long(world: World) -> None:
    roster, _ = roster_of(world, empty_timeout_s=1e-6)
    roster.insist_on_somebody()
    with pytest.raises(TrainingFailed, match=r"cluster\.empty_timeout_s"):
        roster.insist_on_somebody()
