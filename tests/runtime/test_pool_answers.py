"""Several answers in one look of the pool: actors and Ray are stand-ins, no Ray runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from maml_ray.config.settings import ClusterSettings, Settings
from maml_ray.learning.rollout_worker import Assignment, RolloutTimings
from maml_ray.runtime.actor_handle import ActorHandle, InFlight
from maml_ray.runtime.actors import ActorLocation, RolloutInfo
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.rollout_pool import RolloutPool, RolloutRef
from maml_ray.runtime.run_context import RunContext
from maml_ray.runtime.work_queue import WorkBatch
from maml_ray.tasks.task import Task


@dataclass(eq=False)
class Ref:
    """A reference: what is behind it, and whether it is there."""

    value: Any = None
    there: bool = True


@dataclass
class World:
    """Ray as the pool sees it, and what the pool made known."""

    waits: list[int] = field(default_factory=list)
    failures: list[FailureReport] = field(default_factory=list)

    def wait(
        self, refs: Sequence[Ref], *, timeout: float, num_returns: int = 1
    ) -> tuple[list[Ref], list[Ref]]:
        self.waits.append(len(refs))
        there = [ref for ref in refs if ref.there][:num_returns]
        return there, [ref for ref in refs if ref not in there]

    def get(self, ref: Ref, timeout: float) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    kept = SimpleNamespace(
        put=lambda value: None, kill=lambda actor: None, wait=made.wait, get=made.get
    )
    for module in ("actor_handle", "rollout_pool", "actor_group"):
        monkeypatch.setattr(f"maml_ray.runtime.{module}.ray", kept)
    return made


def pool_of(world: World, actors: int) -> RolloutPool:
    settings = Settings(cluster=ClusterSettings(rollout_actors=actors))
    capacity = Capacity(settings.cluster, list, lambda: ())
    context = RunContext("", capacity, world.failures.append, lambda message: None, lambda: None)
    pool = RolloutPool(settings, context)
    for number in range(actors):
        location = ActorLocation("node", "host", 1)
        handle = ActorHandle(f"rollout-{number}", number, None, None, 0.0, location)
        pool._actors._handles.append(handle)
    return pool


def batch_of(tasks: int) -> WorkBatch[RolloutRef]:
    return WorkBatch([Assignment(0, index, Task("any"), 0) for index in range(tasks)])


def give(handle: ActorHandle, batch: WorkBatch[RolloutRef], answer: Ref) -> None:
    assignment = batch.next_item()
    if answer.value is None:
        answer.value = RolloutInfo(assignment, RolloutTimings(0.0, 0.0), "node")
    rollouts: Any = Ref()
    info: Any = answer
    handle.work.append(InFlight(assignment, rollouts, info, time.monotonic()))


def look(pool: RolloutPool) -> list[int]:
    """Act on what is there; which actors it came from."""
    answered = pool._wait()
    for handle, ref in answered:
        pool._handle(handle, ref)
    return [handle.slot for handle, _ in answered]


def test_a_look_brings_every_answer_that_is_there(world: World) -> None:
    pool, batch = pool_of(world, 4), batch_of(4)
    pool._queue.add(batch)
    for handle, there in zip(pool._actors, (True, False, True, True), strict=True):
        give(handle, batch, Ref(there=there))
    assert look(pool) == [0, 2, 3]
    assert world.waits == [4, 3]
    assert (batch.counts.used, batch.counts.unanswered) == (3, 1)


def test_what_came_with_an_actors_death_is_lost_once_and_not_used(world: World) -> None:
    pool, batch = pool_of(world, 1), batch_of(2)
    pool._queue.add(batch)
    (handle,) = pool._actors
    give(handle, batch, Ref(ActorDiedError()))
    give(handle, batch, Ref())
    assert look(pool) == [0, 0]
    assert [seen.failure for seen in world.failures] == [Failure.ACTOR_DIED]
    assert (batch.counts.used, batch.counts.lost, batch.num_queued) == (0, 2, 2)


def test_half_of_what_is_done_is_handed_over_and_then_half_of_the_rest(world: World) -> None:
    """A few calls in all, whatever the number of tasks; nothing is left to hand over at the end."""
    pool, batch = pool_of(world, 9), batch_of(9)
    pool._queue.add(batch)
    answers = [Ref(there=False) for _ in range(9)]
    for handle, answer in zip(pool._actors, answers, strict=True):
        give(handle, batch, answer)
    order, handed = iter([4, 0, 8, 1, 7, 2, 6, 3, 5]), list[list[int]]()

    def step() -> None:
        answers[next(order)].there = True
        look(pool)

    def on_partial(done: Sequence[RolloutRef]) -> None:
        handed.append([rollouts.index(one.rollouts) for one in done])

    rollouts: list[Any] = [handle.work[0].rollouts for handle in pool._actors]
    pool.step = lambda wake_on=(): step()  # type: ignore[method-assign]
    pool.finish(batch, on_partial)
    assert handed == [[4, 0, 8, 1, 7], [2, 6], [3]]
