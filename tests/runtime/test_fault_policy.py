from __future__ import annotations

import pytest

from maml_ray.common.errors import TrainingFailed, UserCodeFailed, UserError
from maml_ray.config.sections import FaultSettings
from maml_ray.runtime.fault_policy import (
    Failure,
    FailureReport,
    FaultLog,
    Retry,
    Stop,
    handle_failure,
)

RAISED = (Failure.WORK_RAISED, Failure.USER_CODE_RAISED)
MENDED = [failure for failure in Failure if failure not in RAISED]


def report(failure: Failure, attempts: int = 1, actor: str = "rollout-1") -> FailureReport:
    return FailureReport(failure, "iteration 4, task 2", actor, attempts, "the last words")


def log(max_attempts: int = 3, **budgets: int) -> FaultLog:
    return FaultLog(FaultSettings.model_validate(budgets), max_attempts)


@pytest.mark.parametrize("failure", [f for f in MENDED if f is not Failure.PREEMPTED])
def test_infrastructure_failures_are_retried_up_to_the_limit(
    failure: Failure,
) -> None:
    faults = log()
    decisions = [faults.decide(report(failure, n)) for n in (1, 2, 3)]
    assert [type(decision) for decision in decisions] == [Retry, Retry, Stop]
    assert "attempt 3 of 3" in decisions[-1].message


def test_preemptions_do_not_count_as_attempts() -> None:
    faults = log()
    assert isinstance(faults.decide(report(Failure.PREEMPTED, 99)), Retry)


@pytest.mark.parametrize("failure", RAISED)
def test_an_error_of_the_work_itself_stops_at_once_since_the_same_seeds_would_raise_it_again(
    failure: Failure,
) -> None:
    assert isinstance(log().decide(report(failure)), Stop)


def test_an_error_of_the_users_code_has_the_exit_code_of_a_mistake() -> None:
    with pytest.raises(UserCodeFailed, match=r"^iteration 4, task 2 on rollout-1: the last words$"):
        handle_failure(log(), report(Failure.USER_CODE_RAISED), lambda message: None)
    assert UserCodeFailed.exit_code == UserError.exit_code == 2


@pytest.mark.parametrize("failure", list(Failure))
def test_the_message_names_the_work_the_actor_and_the_error(failure: Failure) -> None:
    message = log().decide(report(failure, 2)).message
    assert all(word in message for word in ("iteration 4, task 2", "rollout-1", "the last words"))


@pytest.mark.parametrize(
    ("failure", "budget"),
    [(Failure.TIMED_OUT, "infrastructure"), (Failure.PREEMPTED, "preemptions")],
)
def test_a_spent_budget_stops_the_run_with_a_table_of_failures(
    failure: Failure, budget: str
) -> None:
    faults = log(**{budget: 2})
    actors = ["rollout-0", "rollout-1", "rollout-0"]
    decisions = [faults.decide(report(failure, actor=actor)) for actor in actors]
    assert [type(decision) for decision in decisions] == [Retry, Retry, Stop]
    message = decisions[-1].message
    assert f"faults.{budget} allows 2" in message
    rows = [line.split() for line in message.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("2", "rollout-0:"), ("1", "rollout-1:")]


def test_preemptions_have_their_own_budget() -> None:
    faults = log(infrastructure=1, preemptions=1)
    for failure in (Failure.ACTOR_DIED, Failure.PREEMPTED):
        assert isinstance(faults.decide(report(failure)), Retry)
    assert faults.total == 2
    for failure in (Failure.STALLED, Failure.PREEMPTED):
        assert isinstance(faults.decide(report(failure)), Stop)


def test_replacements_count_with_the_actor_they_replace() -> None:
    faults = log(infrastructure=1)
    decision = faults.decide(
        FailureReport(Failure.ACTOR_DIED, "", "rollout-1-replacement-1", 0, "gone")
    )
    assert decision == Retry("rollout-1-replacement-1 is lost: its actor died (gone)")
    ended = faults.decide(
        FailureReport(Failure.ACTOR_DIED, "", "rollout-1-replacement-2", 0, "gone")
    )
    assert ended.message.splitlines()[1:] == ["     2  rollout-1: its actor died"]


def test_a_failure_becomes_an_event_or_ends_the_run() -> None:
    faults, events = log(infrastructure=1), list[str]()
    handle_failure(faults, report(Failure.ACTOR_DIED), events.append)
    assert len(events) == 1
    with pytest.raises(TrainingFailed, match=r"faults\.infrastructure allows 1"):
        handle_failure(faults, report(Failure.ACTOR_DIED), events.append)
    assert len(events) == 1
