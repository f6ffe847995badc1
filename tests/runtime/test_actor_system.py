"""The order of events of an iteration, with and without a prefetched meta-batch. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.learning.staleness import collection_version
from maml_ray.learning.state import LearnerState, policy_snapshot
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.runtime import actor_system as module
from maml_ray.runtime.actor_system import ActorSystem
from maml_ray.runtime.fault_policy import Failure, FailureReport
from maml_ray.runtime.learner_handle import RolloutsLost
from maml_ray.runtime.work_queue import WorkBatch, WorkCounts
from maml_ray.tasks.task import Task
from tests.reporting.conftest import made_up_record
from tests.runs.fake_training import checkpoint_of
from tests.small_runs import settings

TASKS = 2
OVERLAPPED: dict[str, Any] = {"meta_batch": {"async_collection": True}}
Log = list[str]


@dataclass
class FakePool:
    """One fake actor: each step finishes its work and starts the next of the earliest batch."""

    log: Log
    batches: list[WorkBatch[Any]] = field(default_factory=list)
    work: list[tuple[WorkBatch[Any], Assignment]] = field(default_factory=list)
    forgotten: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.work) + self.forgotten

    def submit(self, parameters: Any, assignments: Sequence[Assignment]) -> WorkBatch[Any]:
        batch: WorkBatch[Any] = WorkBatch(assignments, parameters=parameters)
        self.log.append(f"submit {assignments[0].iteration} with {parameters.version}")
        self.batches.append(batch)
        return batch

    def dispatch(self) -> None:
        """Give the fake actor its next piece."""
        waiting = next((one for one in self.batches if one.num_queued), None)
        if waiting is not None and not self.work:
            work = waiting.next_item()
            assert work.version == waiting.parameters.version
            self.log.append(f"collect {work.iteration}.{work.task_index}")
            self.work = [(waiting, work)]

    def step(self, wake_on: Sequence[Any] = ()) -> None:
        for batch, work in self.work:
            batch.finish(work, SimpleNamespace(rollouts=work))
        self.work = []
        self.dispatch()

    def finish(self, batch: WorkBatch[Any], on_partial: Callable[[Any], None]) -> Any:
        """Pass on partial results while the last piece is running."""
        num_reported = 0
        while not batch.is_finished:
            self.step()
            waiting = any(one.num_queued for one in self.batches)
            if not waiting and not batch.is_finished and not num_reported:
                done = batch.results_after(num_reported)
                num_reported += len(done)
                on_partial(done)
        self.batches.remove(batch)
        return SimpleNamespace(rollouts=batch.results(), actors=1, counts=batch.counts)

    def collect(self, parameters: Any, assignments: Sequence[Assignment], before: Any) -> Any:
        self.log.append(f"again {assignments[0].iteration} with {parameters.version}")
        return before

    def classify_loss(self, collected: Any) -> Failure:
        return Failure.ROLLOUTS_LOST


@dataclass
class FakeLearner:
    """Needs one wait for an update; loses the rollouts of one iteration, once."""

    log: Log
    settings: Settings
    state: LearnerState
    lost: int | None = None
    restarts = 0

    def prefetch(self, rollouts: Sequence[Any]) -> None:
        self.log.extend(f"prefetch {work.iteration}.{work.task_index}" for work in rollouts)

    def update(self, rollouts: Sequence[Any], poll_fn: Callable[[Any], None] | None) -> Any:
        version, of = self.state.version, {work.iteration for work in rollouts}
        assert of == {version}
        self.log.append(f"update {version}")
        if poll_fn is not None:
            poll_fn([])
        if self.lost == version:
            self.lost = None
            raise RolloutsLost("gone")
        self.log.append(f"updated {version}")
        behind = policy_snapshot(self.settings.policy, self.state)
        async_collection = self.settings.meta_batch.async_collection
        self.state = replace(
            self.state, version=version + 1, stale_params=behind if async_collection else None
        )
        return made_up_record(version).update


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ray = SimpleNamespace(put=lambda value: value, cluster_resources=dict)
    monkeypatch.setattr(module, "ray", fake_ray)


def fake_system(
    chosen: Settings, log: Log, state: LearnerState | None = None, **learner: Any
) -> ActorSystem:
    initial = checkpoint_of(chosen, 0)
    state = state or initial.learner
    client: Any = FakeLearner(log, chosen, state, **learner)
    pool: Any = FakePool(log)
    latest: Any = policy_snapshot(chosen.policy, state)
    faults: Any = SimpleNamespace(total=0)
    reports = list[FailureReport]()
    context: Any = SimpleNamespace(handle_failure=reports.append)
    return ActorSystem(chosen.policy, initial.spec, client, pool, (), latest, context, faults)


def work(chosen: Settings, iteration: int) -> list[Assignment]:
    version = collection_version(chosen.meta_batch, iteration)
    return [Assignment(iteration, index, Task("any"), version) for index in range(TASKS)]


def run_iterations(system: ActorSystem, chosen: Settings, first: int, last: int) -> None:
    """Run iterations ``first`` to ``last`` as the training loop does."""
    for iteration in range(first, last + 1):
        prefetch = chosen.meta_batch.async_collection and iteration < last
        prefetched = work(chosen, iteration + 1) if prefetch else ()
        system.run_iteration(work(chosen, iteration), prefetched)


def started(
    monkeypatch: pytest.MonkeyPatch, chosen: Settings, log: Log, resume: Checkpoint | None
) -> AbstractContextManager[ActorSystem]:
    """Start a system whose pool is ready at once and whose learner takes three waits."""

    class Pool(FakePool):
        def wait_until_ready(self) -> tuple[()]:
            self.log.append("actors up")
            return ()

        def close(self) -> None: ...

    class Learner(FakeLearner):
        def wait_until_ready(self, poll_fn: Callable[[Any], None]) -> str:
            for _ in range(3):
                poll_fn([])
            self.log.append("learner up")
            return "here"

        def close(self) -> None: ...

    for name in ("plan_resources", "Capacity", "current_run_id"):  # of Ray, which is not there
        monkeypatch.setattr(module, name, lambda *args, **kwargs: SimpleNamespace(namespace=""))
    monkeypatch.setattr(module, "RolloutPool", lambda *args, **kwargs: Pool(log))
    monkeypatch.setattr(module, "LearnerHandle", lambda *args: Learner(log, chosen, state=args[-1]))
    iteration = resume.iteration if resume else 0
    first = work(chosen, iteration) if iteration < chosen.run.iterations else []
    spec = checkpoint_of(chosen, 0).spec
    return module.start_actors(
        chosen, spec, resume, first, on_event=log.append, check_stop=lambda: None
    )


@pytest.mark.parametrize("async_collection", [False, True])
def test_the_first_meta_batch_is_collected_while_the_learner_starts(
    monkeypatch: pytest.MonkeyPatch, async_collection: bool
) -> None:
    log: Log = []
    chosen = settings(run={"iterations": 5}, meta_batch={"async_collection": async_collection})
    with started(monkeypatch, chosen, log, None) as system:
        assert system.learner_device == "here"
        run_iterations(system, chosen, 0, 0)
        last = system.learner.state
    assert log[:5] == ["actors up", "submit 0 with 0", "collect 0.0", "collect 0.1", "learner up"]
    assert log[5:] == ["update 0", "updated 0"]
    fresh = MetaLearner(chosen, system.spec).state()
    np.testing.assert_equal(last.parameters, fresh.parameters)  # the fake learner keeps them


def test_a_resumed_run_collects_with_the_version_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = settings(run={"iterations": 5}, **OVERLAPPED)
    before = fake_system(chosen, [])
    run_iterations(before, chosen, 0, 1)
    log: Log = []
    resume = replace(checkpoint_of(chosen, 2), learner=before.learner.state)
    with started(monkeypatch, chosen, log, resume) as system:
        run_iterations(system, chosen, 2, 3)
    assert log[:4] == ["actors up", "submit 2 with 1", "collect 2.0", "collect 2.1"]
    assert log[4:7] == ["learner up", "submit 3 with 2", "update 2"]


def test_nothing_is_collected_after_the_last_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: Log = []
    chosen = settings(run={"iterations": 5})
    with started(monkeypatch, chosen, log, checkpoint_of(chosen, 5)):
        assert log == ["actors up", "learner up"]


def test_without_overlap_collecting_and_learning_alternate() -> None:
    log: Log = []
    run_iterations(fake_system(settings(), log), settings(), 0, 1)
    assert log == [
        *("submit 0 with 0", "collect 0.0", "collect 0.1", "prefetch 0.0", "update 0", "updated 0"),
        *("submit 1 with 1", "collect 1.0", "collect 1.1", "prefetch 1.0", "update 1", "updated 1"),
    ]


def test_a_prefetched_meta_batch_is_begun_at_once() -> None:
    log: Log = []
    system = fake_system(settings(), log)
    system.prefetch(work(settings(), 0))
    assert log == ["submit 0 with 0", "collect 0.0"]


def test_with_overlap_the_next_meta_batch_is_collected_during_the_update() -> None:
    log: Log = []
    chosen = settings(**OVERLAPPED)
    run_iterations(fake_system(chosen, log), chosen, 0, 2)
    assert log == [
        *("submit 0 with 0", "submit 1 with 0", "collect 0.0", "collect 0.1"),
        *("collect 1.0", "update 0", "collect 1.1", "updated 0"),
        *("submit 2 with 1", "collect 2.0", "update 1", "collect 2.1", "updated 1"),
        *("update 2", "updated 2"),  # nothing is collected that nobody will learn from
    ]


def test_a_resumed_run_repeats_the_prefetched_batch_with_stale_parameters() -> None:
    log: Log = []
    chosen = settings(**OVERLAPPED)
    before = fake_system(chosen, [])
    run_iterations(before, chosen, 0, 1)
    run_iterations(fake_system(chosen, log, before.learner.state), chosen, 2, 3)
    assert log[:4] == ["submit 2 with 1", "submit 3 with 2", "collect 2.0", "collect 2.1"]
    assert log[4:] == [
        *("collect 3.0", "update 2", "collect 3.1", "updated 2", "update 3", "updated 3")
    ]


@pytest.mark.parametrize(("lost", "version"), [(0, 0), (1, 0), (2, 1)])
def test_lost_rollouts_are_collected_again_with_the_same_version(lost: int, version: int) -> None:
    log: Log = []
    run_iterations(
        fake_system(settings(**OVERLAPPED), log, lost=lost), settings(**OVERLAPPED), 0, 2
    )
    again = log.index(f"again {lost} with {version}")
    assert log[again + 1] == f"update {lost}"
    assert [event for event in log if event.startswith("updated")] == [
        f"updated {iteration}" for iteration in range(3)
    ]


def test_unaccounted_work_fails_the_run() -> None:
    """Work of the prefetched meta-batch counts as well."""
    chosen = settings(**OVERLAPPED)
    system = fake_system(chosen, [])
    run_iterations(system, chosen, 0, 0)
    pool: Any = system.pool
    pool.forgotten = 1
    with pytest.raises(TrainingFailed, match="the work counts are inconsistent"):
        run_iterations(system, chosen, 1, 2)
    assert system._counts == WorkCounts(dispatched=4, used=4)
