"""From what was observed of a piece of work to what is done about it: values, no side effects.

Infrastructure fails at random, so its work is handed out again; an error that the work itself
raised would come back with the same seeds, so it stops the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Failure(Enum):
    """How a piece of work did not succeed."""

    ACTOR_DIED = "its actor died"
    TIMED_OUT = "it did not finish in time"
    WORK_RAISED = "it raised an error"


@dataclass(frozen=True)
class Observation:
    """What was seen of one assignment.

    Attributes:
        failure: how it failed.
        work: the assignment, readable.
        actor: the actor's name.
        attempts: how often it has been begun, this time included.
        error: the error's text, or the deadline that passed.
    """

    failure: Failure
    work: str
    actor: str
    attempts: int
    error: str


@dataclass(frozen=True)
class Retry:
    """Hand the work out again, on a new actor in the place of the one that failed."""

    message: str


@dataclass(frozen=True)
class Stop:
    """End the run with ``message``."""

    message: str


def decide(observation: Observation, *, max_attempts: int) -> Retry | Stop:
    """What to do about a failure.

    Args:
        observation: what happened.
        max_attempts: after that many attempts a piece of work ends the run.
    """
    told = (
        f"{observation.work} failed on {observation.actor}: {observation.failure.value} "
        f"({observation.error})"
    )
    if observation.failure is Failure.WORK_RAISED:
        return Stop(told)
    if observation.attempts >= max_attempts:
        return Stop(f"{told}; that was attempt {observation.attempts} of {max_attempts}")
    return Retry(f"{told}; handed out again")
