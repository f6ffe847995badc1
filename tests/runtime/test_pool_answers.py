"""Several replies in one step of the pool, with fake actors and without Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from maml_ray.config.sections import ClusterSettings
from maml_ray.config.settings import Settings
from maml_ray.envs.user_errors import UserCodeError
from maml_ray.learning.rollout_worker import Assignment, RolloutTimings
from maml_ray.runtime.actor_handle import ActorHandle, InFlight, describe_error
from maml_ray.runtime.actors import ActorLocation, RolloutInfo
from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.rollout_pool import RolloutPool, RolloutRef
from maml_ray.runtime.run_context import RunContext
from maml_ray.runtime.work_queue import WorkBatch
from maml_ray.tasks.task import Task


@dataclass(eq=False)
class Ref:
    """A fake reference: its value, and whether it is ready."""

    value: Any = None
    is_ready: bool = True


@dataclass
class World:
    """A fake Ray that records the pool's waits and failures."""

    waits: list[int] = field(default_factory=list)
    failures: list[FailureReport] = field(default_factory=list)

    def wait(
        self, refs: Sequence[Ref], *, timeout: float, num_returns: int = 1
    ) -> tuple[list[Ref], list[Ref]]:
        self.waits.append(len(refs))
        ready = [ref for ref in refs if ref.is_ready][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref, timeout: float) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    fake_ray = SimpleNamespace(
        put=lambda value: None, kill=lambda actor: None, wait=world.wait, get=world.get
    )
    for module in ("actor_handle", "rollout_pool", "actor_group"):
        monkeypatch.setattr(f"maml_ray.runtime.{module}.ray", fake_ray)
    return world


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


def submit(handle: ActorHandle, batch: WorkBatch[RolloutRef], answer: Ref) -> None:
    assignment = batch.next_item()
    if answer.value is None:
        answer.value = RolloutInfo(assignment, RolloutTimings(0.0, 0.0), "node")
    rollouts: Any = Ref()
    info: Any = answer
    handle.work.append(InFlight(assignment, rollouts, info, time.monotonic()))


def handle_replies(pool: RolloutPool) -> list[int]:
    """Handle the ready replies; return the slots of the actors that sent them."""
    answered = pool._wait()
    for handle, ref in answered:
        pool._handle(handle, ref)
    return [handle.slot for handle, _ in answered]


@pytest.mark.parametrize(
    ("words_of_ray", "ours"),
    [
        ("because it was killed by `ray.kill`.", "it was killed by ray.kill"),
        ("because its node has died. Node Id: 1f, Ip address: 10.0.0.1", "its node has died"),
        (
            "because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit "
            "detail: Task was killed due to the node running low on memory.",
            "its node ran out of memory",
        ),
        (
            "because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
            "detail: Worker unexpectedly exits with a connection error code 2. End of file. (1) The"
            " process is killed by SIGKILL by OOM killer due to high memory usage.",
            "its process was killed or crashed",
        ),
        (
            "because its worker process has died. Worker exit type: USER_ERROR Worker exit detail: "
            "Worker exits with an exit code 3.",
            "its code ended the process with exit code 3",
        ),
    ],
)
def test_a_death_is_reported_in_one_sentence_with_the_reason_that_ray_knows(
    words_of_ray: str, ours: str
) -> None:
    error = ActorDiedError()
    error.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RolloutActor\n"
        f"\tpid: 4242\nThe actor is dead {words_of_ray}"
    )
    said = describe_error(error)
    assert ours in said
    assert "4242" not in said
    assert "\n" not in said


def test_one_wait_returns_all_ready_replies(world: World) -> None:
    pool, batch = pool_of(world, 4), batch_of(4)
    pool._queue.add(batch)
    for handle, is_ready in zip(pool._actors, (True, False, True, True), strict=True):
        submit(handle, batch, Ref(is_ready=is_ready))
    assert handle_replies(pool) == [0, 2, 3]
    assert world.waits == [4, 3]
    assert (batch.counts.used, batch.counts.unanswered) == (3, 1)


def test_replies_after_an_actors_death_are_lost_once_and_not_used(world: World) -> None:
    pool, batch = pool_of(world, 1), batch_of(2)
    pool._queue.add(batch)
    (handle,) = pool._actors
    submit(handle, batch, Ref(ActorDiedError()))
    submit(handle, batch, Ref())
    assert handle_replies(pool) == [0, 0]
    assert [report.failure for report in world.failures] == [Failure.ACTOR_DIED]
    assert (batch.counts.used, batch.counts.lost, batch.num_queued) == (0, 2, 2)


@pytest.mark.parametrize(
    ("raised", "failure", "error"),
    [
        (
            UserCodeError("step raises (my.py, line 3)"),
            Failure.USER_CODE_RAISED,
            "step raises (my.",
        ),
        (KeyError("a bug"), Failure.WORK_RAISED, "KeyError: 'a bug'"),
    ],
)
def test_an_error_of_the_users_code_is_told_from_ours(
    raised: Exception, failure: Failure, error: str, world: World
) -> None:
    pool, batch = pool_of(world, 1), batch_of(1)
    pool._queue.add(batch)
    (handle,) = pool._actors
    submit(handle, batch, Ref(RayTaskError("roll_out", "pages of traceback", raised)))
    handle_replies(pool)
    (report,) = world.failures
    assert report.failure is failure
    assert report.error.startswith(error)


def test_partial_results_are_passed_on_in_halves(world: World) -> None:
    """There are few calls whatever the number of tasks, and none at the end."""
    pool, batch = pool_of(world, 9), batch_of(9)
    pool._queue.add(batch)
    answers = [Ref(is_ready=False) for _ in range(9)]
    for handle, answer in zip(pool._actors, answers, strict=True):
        submit(handle, batch, answer)
    order, partial = iter([4, 0, 8, 1, 7, 2, 6, 3, 5]), list[list[int]]()

    def step() -> None:
        answers[next(order)].is_ready = True
        handle_replies(pool)

    def on_partial(done: Sequence[RolloutRef]) -> None:
        partial.append([rollouts.index(one.rollouts) for one in done])

    rollouts: list[Any] = [handle.work[0].rollouts for handle in pool._actors]
    pool.step = lambda wake_on=(): step()  # type: ignore[method-assign]
    pool.finish(batch, on_partial)
    assert partial == [[4, 0, 8, 1, 7], [2, 6], [3]]
