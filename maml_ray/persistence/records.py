"""What a run tells about itself: one record per meta-iteration, and its form in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from maml_ray.learning.state import UpdateMetrics


@dataclass(frozen=True)
class IterationTimings:
    """Where the wall time of one meta-iteration went, in seconds.

    ``collect_s`` and ``adapt_s`` are the actors' mean; ``rest_s`` is what no work accounts for:
    dispatch, transport, and actors that wait for the slowest. With ``meta_batch.async_collection`` the parts
    run side by side, of two meta-batches: they add up to more than the wall time.
    """

    wall_s: float
    collect_s: float
    adapt_s: float
    learn_s: float

    @property
    def rest_s(self) -> float:
        """Wall time that is neither collecting, adapting nor learning."""
        return max(0.0, self.wall_s - self.collect_s - self.adapt_s - self.learn_s)


@dataclass(frozen=True)
class FaultCounts:
    """What it took to get an iteration's rollouts and its update, whatever died on the way.

    ``dispatched = used + discarded + lost`` over a whole run, but for what is under way; the counts
    are of pieces of work, each one task with all its phases.

    Attributes:
        actors: rollout actors at its end.
        dispatched: pieces of work handed to actors.
        retried: of them, handed out again after a failure.
        duplicated: of them, handed to an idle actor as well, since the first was slow.
        used: answers that the learner got: one for each task.
        discarded: answers that came second, or too late.
        lost: pieces that were never answered.
        failures: actors, learners and starts that failed, since the run began or was resumed.
        learner_restarts: learners that were begun anew, likewise.
    """

    actors: int
    dispatched: int
    retried: int
    duplicated: int
    used: int
    discarded: int
    lost: int
    failures: int
    learner_restarts: int


@dataclass(frozen=True)
class IterationRecord:
    """One finished meta-iteration.

    Attributes:
        iteration: its number, from 0.
        iterations: how many the run is to have.
        update: the meta-update's figures.
        timings: where the time went.
        total_env_steps: environment steps since the run began, resumed parts included.
        elapsed_s: seconds of training since the run began, resumed parts included.
        faults: what it took: the work that was handed out, and who did it.
        checkpoint_age_s: seconds since the newest checkpoint that is safe was written; None before
            the first of this process.
        attempt: which attempt at the run it was done in.
    """

    iteration: int
    iterations: int
    update: UpdateMetrics
    timings: IterationTimings
    total_env_steps: int
    elapsed_s: float
    faults: FaultCounts
    checkpoint_age_s: float | None = None
    attempt: int = 1

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of this iteration."""
        return self.update.env_steps / self.timings.wall_s

    def as_row(self) -> dict[str, Any]:
        """One flat JSON object: a line of ``metrics.jsonl``."""
        return {
            "iteration": self.iteration,
            **asdict(self.update),
            **asdict(self.timings),
            "rest_s": self.timings.rest_s,
            "total_env_steps": self.total_env_steps,
            "steps_per_second": self.steps_per_second,
            "elapsed_s": self.elapsed_s,
            **asdict(self.faults),
            "checkpoint_age_s": self.checkpoint_age_s,
            "attempt": self.attempt,
        }


INCIDENTAL_KEYS = frozenset(
    {field.name for field in fields(IterationTimings)}
    | {field.name for field in fields(FaultCounts)}
    | {"rest_s", "steps_per_second", "elapsed_s", "checkpoint_age_s", "attempt"}
)
"""Keys of a row that may differ between two runs of the same settings and seed."""

ROW_KEYS = INCIDENTAL_KEYS | {field.name for field in fields(UpdateMetrics)}
"""Keys of a row whose values are numbers, or missing."""


@dataclass(frozen=True)
class StartReport:
    """What a run starts on.

    Attributes:
        run_directory: where everything is written.
        first_iteration: 0, or where a resumed run goes on.
        rollout_actors: how many there are.
        learner: where the learner computes, in words, e.g. ``"CPU, 2 threads"``.
        ray_address: of the cluster.
        dashboard_url: of Ray's dashboard; None where there is none.
        attempt: how many programs have carried on the run, this one included.
    """

    run_directory: str
    first_iteration: int
    rollout_actors: int
    learner: str
    ray_address: str
    dashboard_url: str | None
    attempt: int = 1


class Observer(Protocol):
    """Somebody who watches a run: a progress display, a metrics file."""

    def on_start(self, report: StartReport) -> None:
        """Actors and learner are up; the first iteration is about to begin."""

    def on_iteration(self, record: IterationRecord) -> None:
        """An iteration has finished."""

    def on_event(self, message: str) -> None:
        """Something worth a line: a checkpoint written, an actor replaced."""

    def close(self) -> None:
        """The run is over, well or not; release what is held."""
