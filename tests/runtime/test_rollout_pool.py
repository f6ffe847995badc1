"""The pool with real actors: order, faults, deadlines; results do not depend on them."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectStoreFullError

from maml_ray.common.errors import Interrupted, ResourceError, TrainingFailed
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, policy_spec
from maml_ray.learning.state import initial_learner_state
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime.actor_handle import ActorHandle
from maml_ray.runtime.capacity import Capacity, ResourcePlan, autoscaler_demand
from maml_ray.runtime.fault_policy import FaultLog, handle_failure
from maml_ray.runtime.learner_handle import LearnerHandle
from maml_ray.runtime.rollout_pool import CollectedBatch, RolloutPool, RolloutRef
from maml_ray.runtime.run_context import RunContext
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardTasks
from maml_ray.tasks.task import Task
from tests.learning_runs import change

pytestmark = pytest.mark.usefixtures("local_ray")
TASKS = 5


def find_no_room(*args: Any) -> Any:
    raise ObjectStoreFullError("no room for the rollouts")


class FlawedTasks(HalfCheetahBackwardTasks):
    """Task ``raises`` raises, ``kills`` kills its process, ``hangs`` never answers.

    Task ``full`` finds no room in the object store. Task ``waits`` waits for a word.
    """

    def __init__(self, fifo: str = "") -> None:
        super().__init__()
        self.fifo = fifo

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> Any:
        if task.name == "raises":
            raise RuntimeError("the simulator is on fire")
        if task.name == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.name == "hangs":
            signal.pause()
        if task.name == "waits":
            Path(self.fifo).read_text()
        if task.name == "full":  # beside the user's code, whose errors would be its own
            mock.patch("maml_ray.learning.rollout_worker.compute_advantages", find_no_room).start()
        return super().make_vector_env(task, num_envs=num_envs, horizon=horizon)

    def retarget(self, env: Any, task: Task) -> bool:
        """Make new simulations for every task, so that its flaw takes effect."""
        return False


def settings(**cluster: Any) -> Settings:
    return validate_settings(
        {
            "task": {"name": "tests.runtime.test_rollout_pool:FlawedTasks", "horizon": 20},
            "meta_batch": {"tasks": TASKS, "episodes": 2},
            "policy": {"hidden_sizes": [8]},
            "cluster": cluster,
        }
    )


def assignments(*names: str) -> list[Assignment]:
    return [Assignment(0, index, Task(name), 0) for index, name in enumerate(names)]


def context_of(
    chosen: Settings,
    namespace: str,
    *,
    capacity: Capacity | None = None,
    on_event: Callable[[str], None] = lambda message: None,
    check_stop: Callable[[], None] = lambda: None,
) -> RunContext:
    faults = FaultLog(chosen.faults, chosen.cluster.max_task_attempts)
    return RunContext(
        namespace=namespace,
        capacity=capacity or Capacity(chosen.cluster),
        handle_failure=partial(handle_failure, faults, on_event=on_event),
        on_event=on_event,
        check_stop=check_stop,
    )


def set_check_stop(pool: RolloutPool, check_stop: Callable[[], None]) -> None:
    pool._context = replace(pool._context, check_stop=check_stop)


Opener = Callable[..., RolloutPool]


@pytest.fixture
def open_pool() -> Iterator[Opener]:
    pools: list[RolloutPool] = []

    def opener(count: int, chosen: Settings, **callbacks: Any) -> RolloutPool:
        chosen = chosen.model_copy(
            update={"cluster": chosen.cluster.model_copy(update={"rollout_actors": count})}
        )
        demand = autoscaler_demand(chosen.cluster, TASKS)
        pools.append(
            RolloutPool(
                chosen,
                context_of(
                    chosen,
                    f"test-{len(pools)}-{os.getpid()}",
                    capacity=Capacity(chosen.cluster, autoscaler_actors=demand),
                    **callbacks,
                ),
            )
        )
        return pools[-1]

    yield opener
    for pool in pools:
        pool.close()


def parameters(chosen: Settings) -> ray.ObjectRef[Any]:
    learner = MetaLearner(chosen, RolloutWorker(chosen).spec)
    return ray.put(learner.publish())


def queries(collected: CollectedBatch) -> list[TaskRollouts]:
    result: list[TaskRollouts] = ray.get([one.rollouts for one in collected.rollouts], timeout=30)
    return result


def expected(chosen: Settings, work: Sequence[Assignment]) -> list[TaskRollouts]:
    worker = RolloutWorker(chosen)
    theta = MetaLearner(chosen, worker.spec).publish()
    return [worker.roll_out(theta, assignment)[0] for assignment in work]


def assert_same(actual: Sequence[TaskRollouts], wanted: Sequence[TaskRollouts]) -> None:
    assert [task.task_index for task in actual] == [task.task_index for task in wanted]
    for one, other in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(one.query.rewards, other.query.rewards)
        np.testing.assert_array_equal(one.support[0].observations, other.support[0].observations)


@pytest.mark.parametrize("actors", [1, 2])
def test_rollouts_come_in_task_order_and_equal_those_of_one_worker(
    open_pool: Opener, actors: int
) -> None:
    chosen, work = settings(), assignments(*["backward"] * TASKS)
    pool = open_pool(actors, chosen)
    pool.wait_until_ready()
    collected = pool.collect(parameters(chosen), work)
    assert collected.counts.retried == 0
    assert_same(queries(collected), expected(chosen, work))


def test_partial_results_are_passed_on_while_the_last_tasks_run(
    open_pool: Opener, tmp_path: Path
) -> None:
    """The waiting task ends only when an idle actor triggers the partial results."""
    chosen, fifo = settings(straggler_factor=None, task_timeout_s=60.0), tmp_path / "go on"
    os.mkfifo(fifo)
    chosen = change(chosen, "task", options={"fifo": str(fifo)})
    pool, partial = open_pool(2, chosen), list[Sequence[RolloutRef]]()

    def on_partial(done: Sequence[RolloutRef]) -> None:
        partial.append(done)
        fifo.write_text("go on")

    pool.wait_until_ready()
    work = assignments("waits", "backward", "backward", "backward")
    collected = pool.finish(pool.submit(parameters(chosen), work), on_partial)
    assert collected.counts.lost == 0
    assert [sorted(map(id, some)) for some in partial] == [sorted(map(id, collected.rollouts[1:]))]


def test_a_killed_actor_is_replaced_and_its_work_retried(open_pool: Opener) -> None:
    chosen, work = settings(), assignments(*["backward"] * TASKS)
    events: list[str] = []
    pool = open_pool(2, chosen, on_event=events.append)
    locations = pool.wait_until_ready()
    events.clear()  # a busy machine may have reported waits
    victim = locations[0].pid
    theta = parameters(chosen)
    os.kill(victim, signal.SIGKILL)
    collected = pool.collect(theta, work)
    assert_same(queries(collected), expected(chosen, work))
    assert collected.counts.retried >= 1
    assert len(events) == 1
    assert "its actor died (its process was killed or crashed; " in events[0]
    again = pool.collect(theta, work)  # the replacement works
    assert again.counts.retried == 0


def test_work_that_kills_every_actor_stops_the_run_and_is_named(open_pool: Opener) -> None:
    chosen = settings(max_task_attempts=2)
    pool = open_pool(2, chosen)
    pool.wait_until_ready()
    with pytest.raises(TrainingFailed, match=r"iteration 0, task 1 .*attempt 2 of 2"):
        pool.collect(parameters(chosen), assignments("backward", "kills", "backward"))


def test_lost_work_has_an_actor_to_itself_so_that_what_kills_is_named(
    open_pool: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor has two pieces at a time, and may die before it has sent the first one's result."""
    given: list[tuple[int, list[int]]] = []
    submit = ActorHandle.submit

    def note(handle: ActorHandle, parameters: Any, work: Assignment) -> None:
        given.append((work.task_index, [item.assignment.task_index for item in handle.work]))
        submit(handle, parameters, work)

    monkeypatch.setattr(ActorHandle, "submit", note)
    chosen = settings(max_task_attempts=2)
    pool = open_pool(1, chosen)
    pool.wait_until_ready()
    names = ["backward", "kills", "backward", "backward", "backward"]
    with pytest.raises(TrainingFailed, match=r"iteration 0, task 1 .*attempt 2 of 2"):
        pool.collect(parameters(chosen), assignments(*names))
    assert (1, [0]) in given
    times: Counter[int] = Counter()
    for index, before in given:
        times[index] += 1
        assert not before or max(times[each] for each in (index, *before)) == 1


def test_work_that_hangs_fails_after_its_deadline(open_pool: Opener) -> None:
    chosen = settings(task_timeout_s=1.0, max_task_attempts=1)
    pool = open_pool(1, chosen)
    pool.wait_until_ready()
    with pytest.raises(TrainingFailed, match=r"task 0 .*did not finish in time.*task_timeout_s"):
        pool.collect(parameters(chosen), assignments("hangs"))


def test_an_error_of_the_work_is_reported_with_its_message(open_pool: Opener) -> None:
    chosen = settings()
    pool = open_pool(1, chosen)
    pool.wait_until_ready()
    with pytest.raises(TrainingFailed, match="RuntimeError: the simulator is on fire"):
        pool.collect(parameters(chosen), assignments("raises"))


def test_what_ray_raises_around_the_work_is_not_the_works_own_error(open_pool: Opener) -> None:
    chosen = settings(max_task_attempts=2)
    pool = open_pool(1, chosen)
    pool.wait_until_ready()
    with pytest.raises(
        TrainingFailed, match=r"store or transfer its data .*no room.*attempt 2 of 2"
    ):
        pool.collect(parameters(chosen), assignments("full"))


def test_dead_idle_actors_are_not_given_work_one_after_the_other(
    open_pool: Opener,
) -> None:
    """Two idle actors die; the work may be lost only once."""
    chosen = settings(max_task_attempts=2)
    pool = open_pool(2, chosen)
    for location in pool.wait_until_ready():
        os.kill(location.pid, signal.SIGKILL)
    work = assignments("backward")
    collected = pool.collect(parameters(chosen), work)
    assert_same(queries(collected), expected(chosen, work))
    assert (collected.counts.dispatched, collected.counts.lost) == (2, 1)


def test_an_actor_that_dies_at_its_start_is_replaced_before_the_run_begins(
    open_pool: Opener,
) -> None:
    events: list[str] = []
    pool = open_pool(1, settings(), on_event=events.append)

    def kill_the_first() -> None:
        if not events:
            for handle in pool._actors:
                ray.kill(handle.actor)

    set_check_stop(pool, kill_the_first)
    assert len(pool.wait_until_ready()) == 1
    assert "the start failed on rollout-0" in events[0]
    assert events[0].endswith("(it was killed by ray.kill); retrying")


def test_with_an_autoscaler_a_run_begins_with_the_actors_that_fit(
    open_pool: Opener,
) -> None:
    chosen, work = settings(autoscaler=True), assignments(*["backward"] * TASKS)
    pool = open_pool(4, chosen)  # the cluster has two CPUs
    assert len(pool.wait_until_ready()) == 2
    assert len(pool._actors.starting) == 2  # for the autoscaler to see
    assert_same(queries(pool.collect(parameters(chosen), work)), expected(chosen, work))


def test_a_late_start_is_reported_and_fails_after_its_deadline(
    open_pool: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.runtime.rollout_pool.PROGRESS_INTERVAL_S", 0.1)
    events: list[str] = []
    chosen = settings(autoscaler=True, min_rollout_actors=3, start_timeout_s=16.0)
    pool = open_pool(3, chosen, on_event=events.append)
    with pytest.raises(ResourceError) as caught:
        pool.wait_until_ready()
    message = str(caught.value)
    assert re.match(r"rollout-\d did not start within 16 s", message)  # Ray places any two of them
    assert "of at least 3 rollout actors are up" in message
    assert "of 2 CPUs are free on 1 node" in message
    assert "of 16 s, cluster.start_timeout_s); " in events[-1]
    assert re.match(r"waiting for a free CPU for rollout-\d \(", events[-1])


def test_a_learner_that_waits_for_a_gpu_is_reported_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maml_ray.runtime.learner_handle.PROGRESS_INTERVAL_S", 0.1)
    events: list[str] = []
    chosen = settings(start_timeout_s=2.0)
    client = LearnerHandle(
        chosen,
        policy_spec(chosen),
        ResourcePlan(2, 1, "cuda"),
        context_of(chosen, "test-learner", on_event=events.append),
        initial_learner_state(chosen, policy_spec(chosen)),
    )
    try:
        with pytest.raises(ResourceError, match=r"did not start within 2 s.*of 2 CPUs"):
            client.wait_until_ready()
    finally:
        client.close()
    assert events[0].startswith("waiting for a free GPU for the learner (")


def test_a_request_to_stop_ends_the_wait_for_work_that_never_ends(open_pool: Opener) -> None:
    chosen = settings()
    answers = iter([False] * 3)

    def stop() -> None:
        if next(answers, True):
            raise Interrupted(signal.SIGINT)

    pool = open_pool(1, chosen)
    pool.wait_until_ready()
    set_check_stop(pool, stop)
    with pytest.raises(Interrupted):
        pool.collect(parameters(chosen), assignments("hangs"))


def test_a_later_meta_batch_starts_once_the_earlier_one_has_no_queued_work(
    open_pool: Opener,
) -> None:
    """One actor may have a second piece queued, of either batch."""
    chosen, work = settings(), assignments(*["backward"] * TASKS)
    later = [replace(one, iteration=1) for one in work]
    pool, theta = open_pool(1, chosen), parameters(chosen)
    pool.wait_until_ready()
    second, first = pool.submit(theta, later), pool.submit(theta, work)
    collected = pool.finish(first)
    assert second.counts.used == 0
    assert_same(queries(collected), expected(chosen, work))
    assert_same(queries(pool.finish(second)), expected(chosen, later))
