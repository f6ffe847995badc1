"""Define what a run reports: a record of each meta-iteration, and the observers that receive it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from maml_ray.learning.state import UpdateMetrics


@dataclass(frozen=True)
class IterationTimings:
    """Wall time of one meta-iteration by activity, in seconds.

    ``collect_s`` and ``adapt_s`` are means over the actors; ``rest_s`` is the remainder: dispatch,
    transport, and actors that wait for the slowest. With ``meta_batch.async_collection`` the parts
    overlap, and add up to more than the wall time.
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
    """Work dispatched and faults handled in one meta-iteration.

    The work counts are of assignments, each one task with all its phases. Over a whole run,
    ``dispatched = used + discarded + lost``, apart from what is in flight.

    Attributes:
        actors: rollout actors at the end of the iteration.
        dispatched: assignments sent to actors.
        retried: of these, sent again after a failure.
        duplicated: of these, sent to an idle actor as well because the first was slow.
        used: results that the learner received, one for each task.
        discarded: results that came second or too late.
        lost: assignments that were never answered.
        failures: failures of actors, learners and starts since the run began or was resumed.
        learner_restarts: restarts of the learner since then.
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
    """Metrics of one finished meta-iteration.

    Attributes:
        iteration: its number, from 0.
        iterations: number of iterations that the run is to have.
        update: metrics of the meta-update.
        timings: wall time by activity.
        total_env_steps: environment steps since the run began, including resumed parts.
        elapsed_s: seconds of training since the run began, including resumed parts.
        faults: work and faults.
        checkpoint_age_s: seconds since the newest saved checkpoint was written; None before the
            first of this process.
        attempt: number of the attempt at the run.
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
        """Return the record as one flat JSON object: a line of ``metrics.jsonl``."""
        update = asdict(self.update)
        before, after = (update.pop(name) for name in _INFOS)
        return {
            "iteration": self.iteration,
            **update,
            **{f"{name}_before": value for name, value in before.items()},
            **{f"{name}_after": value for name, value in after.items()},
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

_INFOS = ("infos_before", "infos_after")
ROW_KEYS = INCIDENTAL_KEYS | {field.name for field in fields(UpdateMetrics)}.difference(_INFOS)
"""Keys of a row whose values are numbers or missing."""


@dataclass(frozen=True)
class StartReport:
    """Resources that a run starts with.

    Attributes:
        run_directory: path of the run directory.
        first_iteration: 0, or the iteration that a resumed run continues from.
        rollout_actors: number of rollout actors.
        learner: description of the learner's device, for example ``"CPU, 2 threads"``.
        ray_address: address of the Ray cluster.
        dashboard_url: URL of Ray's dashboard; None if there is none.
        attempt: number of processes that have carried on the run, this one included.
        connect_s: seconds that starting or joining Ray took.
        actors_s: seconds from then until actors, learner and storage were ready.
    """

    run_directory: str
    first_iteration: int
    rollout_actors: int
    learner: str
    ray_address: str
    dashboard_url: str | None
    attempt: int = 1
    connect_s: float = 0.0
    actors_s: float = 0.0


class Observer:
    """Receive the progress of a run: a base class of which a subclass overrides some methods.

    All methods are called in the process that called :func:`maml_ray.train`, by the thread that
    called it, in this order::

        on_status, on_event   at any time, from the start on
        on_start              once: actors and learner are up, the first iteration begins
        on_iteration          after each iteration
        close                 once after on_start, at the last iteration or when the run ends early

    While ``on_iteration`` runs, each actor works on a task or two of the next iteration, and gets
    more when it has returned: keep it shorter than these.

    An exception in an observer that was passed to :func:`maml_ray.train` does not end the run: it
    is reported once, and of that observer only ``close`` is called from then on.
    """

    def on_start(self, report: StartReport) -> None:
        """Handle the start of the first iteration; actors and learner are ready."""

    def on_iteration(self, record: IterationRecord) -> None:
        """Handle the end of an iteration."""

    def on_status(self, message: str) -> None:
        """Handle what the run does from now on, such as ``"starting Ray"``; may be ignored."""

    def on_event(self, message: str) -> None:
        """Handle an event worth a line, such as a checkpoint written or an actor replaced."""

    def close(self) -> None:
        """Release all resources at the end of the run, successful or not."""
