"""The order of events of an iteration, with a meta-batch ahead and without. No Ray."""

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
from maml_ray.runtime import actor_system as crew_module
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
class MadeUpPool:
    """One actor: in each step it answers, and is given the next piece of the earliest batch."""

    log: Log
    batches: list[WorkBatch[Any]] = field(default_factory=list)
    work: list[tuple[WorkBatch[Any], Assignment]] = field(default_factory=list)
    forgotten: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.work) + self.forgotten

    def begin(self, parameters: Any, assignments: Sequence[Assignment]) -> WorkBatch[Any]:
        batch: WorkBatch[Any] = WorkBatch(assignments, parameters=parameters)
        self.log.append(f"begin {assignments[0].iteration} with {parameters.version}")
        self.batches.append(batch)
        return batch

    def step(self, others: Sequence[Any] = ()) -> None:
        for batch, work in self.work:
            batch.finish(work, SimpleNamespace(rollouts=work))
        self.work = []
        waiting = next((one for one in self.batches if one.waiting), None)
        if waiting is not None:
            work = waiting.hand_out()
            assert work.version == waiting.parameters.version
            self.log.append(f"collect {work.iteration}.{work.task_index}")
            self.work = [(waiting, work)]

    def finish(self, batch: WorkBatch[Any], hand_over: Callable[[Any], None]) -> Any:
        """What is done is handed over while the last piece is under way."""
        handed = 0
        while not batch.finished:
            self.step()
            waiting = any(one.waiting for one in self.batches)
            if not waiting and not batch.finished and not handed:
                done = batch.done_since(handed)
                handed += len(done)
                hand_over(done)
        self.batches.remove(batch)
        return SimpleNamespace(rollouts=batch.results(), actors=1, counts=batch.counts)

    def collect(self, parameters: Any, assignments: Sequence[Assignment], before: Any) -> Any:
        self.log.append(f"again {assignments[0].iteration} with {parameters.version}")
        return before

    def classify_loss(self, collected: Any) -> Failure:
        return Failure.ROLLOUTS_LOST


@dataclass
class MadeUpLearner:
    """Needs one wait for an update; loses the rollouts of one iteration, once."""

    log: Log
    settings: Settings
    state: LearnerState
    lost: int | None = None
    restarts = 0

    def take(self, rollouts: Sequence[Any]) -> None:
        self.log.extend(f"take {work.iteration}.{work.task_index}" for work in rollouts)

    def update(self, rollouts: Sequence[Any], meanwhile: Callable[[Any], None] | None) -> Any:
        version, of = self.state.version, {work.iteration for work in rollouts}
        assert of == {version}
        self.log.append(f"update {version}")
        if meanwhile is not None:
            meanwhile([])
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
    made_up = SimpleNamespace(put=lambda value: value, cluster_resources=dict)
    monkeypatch.setattr(crew_module, "ray", made_up)


def made_up_crew(
    chosen: Settings, log: Log, state: LearnerState | None = None, **learner: Any
) -> ActorSystem:
    begun = checkpoint_of(chosen, 0)
    state = state or begun.learner
    client: Any = MadeUpLearner(log, chosen, state, **learner)
    pool: Any = MadeUpPool(log)
    newest: Any = policy_snapshot(chosen.policy, state)
    faults: Any = SimpleNamespace(total=0)
    told = list[FailureReport]()
    return ActorSystem(chosen, begun.spec, client, pool, (), newest, faults, told.append)


def work(chosen: Settings, iteration: int) -> list[Assignment]:
    version = collection_version(chosen.meta_batch, iteration)
    return [Assignment(iteration, index, Task("any"), version) for index in range(TASKS)]


def learned(crew: ActorSystem, first: int, last: int) -> None:
    """Iterations ``first`` to ``last``, as the training loop asks for them."""
    for iteration in range(first, last + 1):
        ahead = crew.settings.meta_batch.async_collection and iteration < last
        next_one = work(crew.settings, iteration + 1) if ahead else ()
        crew.learn(work(crew.settings, iteration), next_one)


def started(
    monkeypatch: pytest.MonkeyPatch, chosen: Settings, log: Log, resume: Checkpoint | None
) -> AbstractContextManager[ActorSystem]:
    """A crew as it starts, of a pool that is up at once and a learner that takes three waits."""

    class Pool(MadeUpPool):
        def wait_until_ready(self) -> tuple[()]:
            self.log.append("actors up")
            return ()

        def close(self) -> None: ...

    class Learner(MadeUpLearner):
        def wait_until_ready(self, meanwhile: Callable[[Any], None]) -> str:
            for _ in range(3):
                meanwhile([])
            self.log.append("learner up")
            return "here"

        def close(self) -> None: ...

    for asked in ("plan_resources", "Capacity", "current_run_id"):  # of Ray, which is not there
        monkeypatch.setattr(crew_module, asked, lambda *told, **more: SimpleNamespace(namespace=""))
    monkeypatch.setattr(crew_module, "RolloutPool", lambda *told, **more: Pool(log))
    monkeypatch.setattr(
        crew_module, "LearnerHandle", lambda *told, state, **more: Learner(log, chosen, state)
    )
    iteration = resume.iteration if resume else 0
    first = work(chosen, iteration) if iteration < chosen.run.iterations else []
    spec = checkpoint_of(chosen, 0).spec
    return crew_module.crew(
        chosen, spec, resume, first, on_event=log.append, check_stop=lambda: None
    )


@pytest.mark.parametrize("async_collection", [False, True])
def test_the_first_meta_batch_is_collected_while_the_learner_starts(
    monkeypatch: pytest.MonkeyPatch, async_collection: bool
) -> None:
    log: Log = []
    chosen = settings(run={"iterations": 5}, meta_batch={"async_collection": async_collection})
    with started(monkeypatch, chosen, log, None) as crew:
        assert crew.learner_place == "here"
        learned(crew, 0, 0)
        last = crew.learner.state
    assert log[:5] == ["actors up", "begin 0 with 0", "collect 0.0", "collect 0.1", "learner up"]
    assert log[5:] == ["update 0", "updated 0"]
    fresh = MetaLearner(chosen, crew.spec).state()
    np.testing.assert_equal(last.parameters, fresh.parameters)  # the made-up learner keeps them


def test_a_resumed_run_begins_with_the_version_that_was_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = settings(run={"iterations": 5}, **OVERLAPPED)
    before = made_up_crew(chosen, [])
    learned(before, 0, 1)
    log: Log = []
    resume = replace(checkpoint_of(chosen, 2), learner=before.learner.state)
    with started(monkeypatch, chosen, log, resume) as crew:
        learned(crew, 2, 3)
    assert log[:4] == ["actors up", "begin 2 with 1", "collect 2.0", "collect 2.1"]
    assert log[4:7] == ["learner up", "begin 3 with 2", "update 2"]


def test_nothing_is_begun_where_a_run_has_come_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: Log = []
    chosen = settings(run={"iterations": 5})
    with started(monkeypatch, chosen, log, checkpoint_of(chosen, 5)):
        assert log == ["actors up", "learner up"]


def test_without_overlap_collecting_and_learning_alternate() -> None:
    log: Log = []
    learned(made_up_crew(settings(), log), 0, 1)
    assert log == [
        *("begin 0 with 0", "collect 0.0", "collect 0.1", "take 0.0", "update 0", "updated 0"),
        *("begin 1 with 1", "collect 1.0", "collect 1.1", "take 1.0", "update 1", "updated 1"),
    ]


def test_with_overlap_the_next_meta_batch_is_collected_during_the_update() -> None:
    log: Log = []
    learned(made_up_crew(settings(**OVERLAPPED), log), 0, 2)
    assert log == [
        *("begin 0 with 0", "begin 1 with 0", "collect 0.0", "collect 0.1"),
        *("collect 1.0", "update 0", "collect 1.1", "updated 0"),
        *("begin 2 with 1", "collect 2.0", "update 1", "collect 2.1", "updated 1"),
        *("update 2", "updated 2"),  # nothing is collected that nobody will learn from
    ]


def test_a_resumed_run_collects_what_was_under_way_again_with_the_version_behind() -> None:
    log: Log = []
    chosen = settings(**OVERLAPPED)
    before = made_up_crew(chosen, [])
    learned(before, 0, 1)
    learned(made_up_crew(chosen, log, before.learner.state), 2, 3)
    assert log[:4] == ["begin 2 with 1", "begin 3 with 2", "collect 2.0", "collect 2.1"]
    assert log[4:] == [
        *("collect 3.0", "update 2", "collect 3.1", "updated 2", "update 3", "updated 3")
    ]


@pytest.mark.parametrize(("lost", "version"), [(0, 0), (1, 0), (2, 1)])
def test_lost_rollouts_are_collected_again_with_the_version_that_they_had(
    lost: int, version: int
) -> None:
    log: Log = []
    learned(made_up_crew(settings(**OVERLAPPED), log, lost=lost), 0, 2)
    again = log.index(f"again {lost} with {version}")
    assert log[again + 1] == f"update {lost}"
    assert [event for event in log if event.startswith("updated")] == [
        f"updated {iteration}" for iteration in range(3)
    ]


def test_work_of_which_nobody_has_heard_is_missed_in_the_account() -> None:
    """Of the meta-batch ahead, too."""
    crew = made_up_crew(settings(**OVERLAPPED), [])
    learned(crew, 0, 0)
    pool: Any = crew.pool
    pool.forgotten = 1
    with pytest.raises(TrainingFailed, match="the account of the work is wrong"):
        learned(crew, 1, 2)
    assert crew._counts == WorkCounts(dispatched=4, used=4)
