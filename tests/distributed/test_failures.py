from __future__ import annotations

import pytest

from maml_ray.distributed.failures import Failure, Observation, Retry, Stop, decide


def observed(failure: Failure, attempts: int = 1) -> Observation:
    return Observation(failure, "iteration 4, task 2", "rollout-1", attempts, "the last words")


@pytest.mark.parametrize("failure", [Failure.ACTOR_DIED, Failure.TIMED_OUT])
def test_infrastructure_failures_are_handed_out_again_until_the_attempts_are_used(
    failure: Failure,
) -> None:
    decisions = [decide(observed(failure, n), max_attempts=3) for n in (1, 2, 3)]
    assert [type(decision) for decision in decisions] == [Retry, Retry, Stop]


def test_an_error_of_the_work_itself_stops_at_once_since_the_same_seeds_would_raise_it_again() -> (
    None
):
    assert isinstance(decide(observed(Failure.WORK_RAISED), max_attempts=3), Stop)


@pytest.mark.parametrize("failure", list(Failure))
def test_the_message_names_the_work_the_actor_and_the_error(failure: Failure) -> None:
    message = decide(observed(failure, 3), max_attempts=3).message
    assert all(word in message for word in ("iteration 4, task 2", "rollout-1", "the last words"))
