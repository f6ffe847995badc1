"""A standby learner takes over with the same bits, whichever of the two dies, and when."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.test_utils import wait_for_condition

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.learning.state import LearnerState, initial_learner_state
from maml_ray.persistence.records import IterationRecord
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.actors import ActorLocation, LearnerActor
from maml_ray.runtime.capacity import ResourcePlan
from maml_ray.runtime.learner_process import LearnerFactory, LearnerProcess, StandbyLearner
from tests.chaos.learners import hit, learners, location_of
from tests.chaos.watched import Watcher, assert_undisturbed
from tests.runtime.test_rollout_pool import context_of
from tests.small_runs import settings

pytestmark = pytest.mark.usefixtures("local_ray")

NUMBERS = itertools.count()
FIRST, SECOND, THIRD, FOURTH = "learner", *(f"learner-replacement-{n}" for n in range(1, 4))


def test_any_death_of_the_learner_and_its_standby_leaves_the_result_as_it_is(
    tmp_path: Path,
) -> None:
    def kill_the_first_once_its_standby_is_up() -> None:
        location_of(SECOND)
        hit(signal.SIGKILL, FIRST)

    deeds: dict[int, Callable[[], object]] = {
        0: kill_the_first_once_its_standby_is_up,
        2: lambda: hit(signal.SIGKILL, SECOND),  # while a standby is starting
        4: lambda: hit(signal.SIGKILL, THIRD, FOURTH),  # both at once
    }

    def act(record: IterationRecord) -> None:
        deeds.get(record.iteration, lambda: None)()

    cluster = {"standby_learner": True, "learner_threads": 1}
    chosen = settings(run={"iterations": 6}, cluster=cluster)
    folder, watcher = RunDir(tmp_path / "run"), Watcher(act)
    train_on_ray(chosen, folder, observers=[watcher])
    restarts = [record.faults.learner_restarts for record in watcher.records]
    assert restarts == [0, 1, 1, 2, 2, 3]
    took_over = [event for event in watcher.events if "takes over" in event]
    assert took_over == [f"{name}, the standby learner, takes over" for name in (SECOND, THIRD)]
    lost = [event for event in watcher.events if "it was the standby" in event]
    assert [event.split()[0] for event in lost] == [FOURTH]
    assert watcher.records[-1].faults.failures == 4
    assert_undisturbed(chosen, folder)
    wait_for_condition(lambda: not learners(), timeout=60)  # Ray kills without waiting


def test_without_the_setting_there_is_no_standby(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    chosen = settings(run={"iterations": 2})
    watcher = Watcher(lambda record: seen.append(learners()))
    train_on_ray(chosen, RunDir(tmp_path / "run"), observers=[watcher])
    assert seen == [{FIRST}, {FIRST}]
    assert watcher.events == []


class Unfit(LearnerActor):
    """A learner on a machine that it cannot start on."""

    def __init__(self, *others: Any) -> None:
        raise RuntimeError("no driver for this device")

    def __repr__(self) -> str:
        return "learner"


class Recording(LearnerFactory):
    """Keep what was started."""

    def __init__(self, chosen: Settings) -> None:
        namespace = f"test-standby-{next(NUMBERS)}"  # Ray frees the names of the dead late
        super().__init__(chosen, policy_spec(chosen), ResourcePlan(1, 0, "cpu"), namespace)
        self.started: list[LearnerProcess] = []

    def start(self, state: LearnerState, away_from: ActorLocation | None = None) -> LearnerProcess:
        self.started.append(super().start(state, away_from))
        return self.started[-1]


def failing_standby(chosen: Settings, events: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that maintains a standby once its last start has failed; its parts."""
    state = initial_learner_state(chosen, policy_spec(chosen))
    factory = Recording(chosen)
    monkeypatch.setattr("maml_ray.runtime.learner_process.LearnerActor", Unfit)
    active = factory.start(state)
    standby = StandbyLearner(factory, context_of(chosen, "", on_event=events.append), 2)

    def maintain() -> None:
        ray.wait([factory.started[-1].description_ref], timeout=120)
        standby.maintain(state, active)

    return maintain, factory, standby


def test_a_standby_that_cannot_start_is_given_up_and_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, events = settings(), list[str]()
    maintain, factory, standby = failing_standby(chosen, events, monkeypatch)
    for _ in range(6):
        maintain()
    assert standby.take() is None
    assert len(factory.started) == 1 + 2
    assert [event for event in events if "no driver for this device" in event] == events[:2]
    assert events[2:] == [
        "the standby learner could not start 2 times in a row: the run continues without one"
    ]


def test_a_lost_standby_counts_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(faults={"infrastructure": 0})
    maintain, *_ = failing_standby(chosen, [], monkeypatch)
    maintain()
    with pytest.raises(TrainingFailed, match=r"it was the standby.*faults\.infrastructure"):
        maintain()
