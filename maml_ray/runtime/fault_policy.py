"""From what was observed of a failure to what is done about it: values, no side effects.

Infrastructure fails at random, so its work is handed out again, within a budget; an error that
the work itself raised would come back with the same seeds, so it stops the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import FaultSettings

REPLACEMENT = "-replacement-"
"""Stands in an actor's name between its place and the number of actors before it there."""


class Failure(Enum):
    """How a piece of work, or its actor, did not succeed."""

    ACTOR_DIED = "its actor died"
    TIMED_OUT = "it did not finish in time"
    STALLED = "nothing has finished for too long"
    PREEMPTED = "its node was announced to go away"
    START_FAILED = "it could not start"
    DATA_LOST = "Ray could not keep or bring its data"
    ROLLOUTS_LOST = "the node that held its rollouts has gone"
    WORK_RAISED = "it raised an error"


@dataclass(frozen=True)
class Observation:
    """What was seen of one failure.

    Attributes:
        failure: how it failed.
        work: what was being done, readable; empty where the actor was idle.
        actor: the actor's name.
        attempts: how often this work has failed in a row, this time included; 0 where the work is
            not to blame.
        error: the error's text, or the deadline that passed.
    """

    failure: Failure
    work: str
    actor: str
    attempts: int
    error: str

    def told(self) -> str:
        """All of it, for people."""
        subject = f"{self.work} failed on {self.actor}" if self.work else f"{self.actor} is lost"
        return f"{subject}: {self.failure.value} ({self.error})"


@dataclass(frozen=True)
class Retry:
    """Hand the work out again, on a new actor in the place of the one that failed."""

    message: str


@dataclass(frozen=True)
class Stop:
    """End the run with ``message``."""

    message: str


class FaultLog:
    """What has failed so far, against the budgets of the settings.

    Args:
        budgets: how much may fail.
        max_attempts: after so many failures in a row a piece of work ends the run.
    """

    def __init__(self, budgets: FaultSettings, max_attempts: int) -> None:
        self._budgets = budgets
        self._max_attempts = max_attempts
        self._seen: Counter[tuple[Failure, str]] = Counter()

    def decide(self, observation: Observation) -> Retry | Stop:
        """Note a failure; what to do about it."""
        place = observation.actor.partition(REPLACEMENT)[0]
        self._seen[observation.failure, place] += 1
        told = observation.told()
        if observation.failure is Failure.WORK_RAISED:
            return Stop(told)
        preempted = observation.failure is Failure.PREEMPTED
        if not preempted and observation.attempts >= self._max_attempts:
            return Stop(f"{told}; that was attempt {observation.attempts} of {self._max_attempts}")
        name = "preemptions" if preempted else "infrastructure"
        budget, spent = getattr(self._budgets, name), self._spent(preempted)
        if spent > budget:
            return Stop(
                f"{told}; that was failure {spent}, and faults.{name} allows {budget}:\n"
                f"{self.table()}"
            )
        return Retry(f"{told}; done again" if observation.work else told)

    @property
    def total(self) -> int:
        """How many failures there were, of all kinds."""
        return sum(self._seen.values())

    def table(self) -> str:
        """What happened: a line for each kind of failure and actor, its replacements included."""
        ordered = sorted(
            self._seen.items(), key=lambda item: (-item[1], item[0][1], item[0][0].name)
        )
        return "\n".join(
            f"{count:6d}  {actor}: {failure.value}" for (failure, actor), count in ordered
        )

    def _spent(self, preempted: bool) -> int:
        return sum(
            count
            for (failure, _), count in self._seen.items()
            if (failure is Failure.PREEMPTED) == preempted
        )


def settle(faults: FaultLog, observation: Observation, on_event: Callable[[str], None]) -> None:
    """Note a failure, and tell of it where the run goes on.

    Raises:
        TrainingFailed: it does not.
    """
    decision = faults.decide(observation)
    if isinstance(decision, Stop):
        raise TrainingFailed(decision.message)
    on_event(decision.message)
