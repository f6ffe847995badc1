"""Decide from a failure report whether the run retries or stops, without side effects.

Infrastructure fails at random, so its work is retried within a budget. An error raised by the work
itself would recur with the same seeds, so it stops the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from maml_ray.common.errors import TrainingFailed, UserCodeFailed
from maml_ray.config.sections import FaultSettings

REPLACEMENT = "-replacement-"
"""Separates an actor's base name from the number of its predecessors in the same slot."""


class Failure(Enum):
    """The kind of failure of a piece of work or of its actor."""

    ACTOR_DIED = "its actor died"
    TIMED_OUT = "it did not finish in time"
    STALLED = "nothing has finished for too long"
    PREEMPTED = "its node was preempted"
    START_FAILED = "it could not start"
    DATA_LOST = "Ray could not store or transfer its data"
    ROLLOUTS_LOST = "the node that held its rollouts has gone"
    WORK_RAISED = "it raised an error"
    USER_CODE_RAISED = "the user's environment or tasks raised an error"


@dataclass(frozen=True)
class FailureReport:
    """One failure as the driver saw it.

    Attributes:
        failure: kind of the failure.
        work: description of the work in progress; empty if the actor was idle.
        actor: name of the actor.
        attempts: consecutive failures of this work, this one included; 0 if the work is not the
            cause.
        error: text of the error, or the deadline that passed.
    """

    failure: Failure
    work: str
    actor: str
    attempts: int
    error: str

    def __str__(self) -> str:
        subject = f"{self.work} failed on {self.actor}" if self.work else f"{self.actor} is lost"
        return f"{subject}: {self.failure.value} ({self.error})"


@dataclass(frozen=True)
class Retry:
    """Repeat the work on a new actor that replaces the failed one."""

    message: str


@dataclass(frozen=True)
class Stop:
    """End the run with ``message``.

    Attributes:
        message: what happened.
        is_users: the user's own code is the cause.
    """

    message: str
    is_users: bool = False


class FaultLog:
    """Count failures against the budgets of the settings.

    Args:
        budgets: maximum number of failures, by kind.
        max_attempts: consecutive failures of one piece of work that end the run.
    """

    def __init__(self, budgets: FaultSettings, max_attempts: int) -> None:
        self._budgets = budgets
        self._max_attempts = max_attempts
        self._counts: Counter[tuple[Failure, str]] = Counter()

    def decide(self, report: FailureReport) -> Retry | Stop:
        """Count a failure and return what to do about it."""
        base_name = report.actor.partition(REPLACEMENT)[0]
        self._counts[report.failure, base_name] += 1
        if report.failure is Failure.USER_CODE_RAISED:
            return Stop(f"{report.work} on {report.actor}: {report.error}", is_users=True)
        if report.failure is Failure.WORK_RAISED:
            return Stop(str(report))
        preempted = report.failure is Failure.PREEMPTED
        if not preempted and report.attempts >= self._max_attempts:
            return Stop(f"{report}; that was attempt {report.attempts} of {self._max_attempts}")
        name = "preemptions" if preempted else "infrastructure"
        budget, spent = getattr(self._budgets, name), self._count(preempted)
        if spent > budget:
            return Stop(
                f"{report}; that was failure {spent}, and faults.{name} allows {budget}:\n"
                f"{self.table()}"
            )
        return Retry(f"{report}; retrying" if report.work else str(report))

    @property
    def total(self) -> int:
        """Number of failures of all kinds."""
        return sum(self._counts.values())

    def table(self) -> str:
        """Return a line per kind of failure and actor slot: replacements count with the slot."""
        ordered = sorted(
            self._counts.items(), key=lambda item: (-item[1], item[0][1], item[0][0].name)
        )
        return "\n".join(
            f"{count:6d}  {actor}: {failure.value}" for (failure, actor), count in ordered
        )

    def _count(self, preempted: bool) -> int:
        return sum(
            count
            for (failure, _), count in self._counts.items()
            if (failure is Failure.PREEMPTED) == preempted
        )


def handle_failure(
    faults: FaultLog, report: FailureReport, on_event: Callable[[str], None]
) -> None:
    """Count a failure, and pass it to ``on_event`` if the run goes on.

    Raises:
        TrainingFailed: the run must stop; :class:`UserCodeFailed` if the user's code raised.
    """
    decision = faults.decide(report)
    if isinstance(decision, Stop):
        raise (UserCodeFailed if decision.is_users else TrainingFailed)(decision.message)
    on_event(decision.message)
