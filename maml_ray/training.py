"""The training loop.

    learner publishes parameters -> actors collect, adapt, collect -> learner updates -> again

The loop moves references and figures; it holds neither trajectories nor gradients. What it does
hold is the learner's last state, which is small: whoever dies, training goes on from there, and to
the same bits, since every random number is named by what it is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import ray

from maml_ray.checkpoint import Checkpoint, save_checkpoint
from maml_ray.config import Settings, dump_settings
from maml_ray.distributed.batch import WorkCounts
from maml_ray.distributed.cluster import connected, dashboard_url, plan_resources
from maml_ray.distributed.failures import Failure, FaultLog, Observation, Stop
from maml_ray.distributed.learner_client import LearnerClient, RolloutsLost
from maml_ray.distributed.pool import Collected, RolloutPool
from maml_ray.errors import Interrupted, RunFolderError, TrainingFailed
from maml_ray.learner import UpdateMetrics, published
from maml_ray.policy import PolicySpec
from maml_ray.records import FaultFigures, IterationRecord, IterationTimings, Observer, StartReport
from maml_ray.rollout import Assignment, policy_spec, sample_tasks
from maml_ray.run_folder import RunFolder
from maml_ray.stopping import StopRequest
from maml_ray.tasks.lookup import resolve_tasks


@dataclass
class _Crew:
    """The actors of a run, up and running, and the account of their work."""

    spec: PolicySpec
    learner: LearnerClient
    pool: RolloutPool
    faults: FaultLog
    on_event: Callable[[str], None]
    counts: WorkCounts = field(default_factory=WorkCounts)

    def note(self, observation: Observation) -> None:
        """A failure that is mended here, if the budgets allow."""
        decision = self.faults.decide(observation)
        if isinstance(decision, Stop):
            raise TrainingFailed(decision.message)
        self.on_event(decision.message)

    def account(self, counts: WorkCounts, tasks: int) -> None:
        """Every piece of work is used once, and every other one is known to be lost or late."""
        self.counts += counts
        if counts.used != tasks or self.counts.unanswered != self.pool.in_flight:
            raise TrainingFailed(
                f"the account of the work is wrong: {counts} of {tasks} tasks; since the start "
                f"{self.counts}, under way {self.pool.in_flight}"
            )


@dataclass(frozen=True)
class _Position:
    """How far a run has come."""

    iteration: int = 0
    total_env_steps: int = 0
    elapsed_s: float = 0.0


def train(
    settings: Settings,
    folder: RunFolder,
    *,
    observers: Sequence[Observer] = (),
    resume: Checkpoint | None = None,
) -> None:
    """Meta-train on Ray, with a checkpoint every so often and at the end.

    Args:
        settings: of the run.
        folder: where settings and checkpoints go; made once the actors are up.
        observers: told of the start, of every iteration and of events; closed by their owner.
        resume: where to go on; None to begin.

    Raises:
        ResourceError: the cluster is not there or lacks what is asked for.
        TrainingFailed: a piece of work cannot be done; checkpoints up to then are kept.
        Interrupted: a signal came; the finished iterations have been checkpointed.
        RunFolderError: the folder or a checkpoint could not be written.
    """
    audience = _Audience(observers)
    with (
        connected(settings.cluster.address),
        StopRequest() as stop,
        _crew(settings, folder, audience, stop, resume) as crew,
    ):
        position = _position_of(resume)
        saved = position.iteration if resume else None
        tasks = resolve_tasks(settings.task)
        began = time.perf_counter()
        try:
            for iteration in range(position.iteration, settings.run.iterations):
                assignments = [
                    Assignment(iteration, index, task, version=iteration)
                    for index, task in enumerate(sample_tasks(settings, tasks, iteration))
                ]
                collected, update = _learn(settings, crew, assignments)
                now = time.perf_counter()
                record = _record(settings, crew, position, update, collected, now - began)
                began = now  # what follows, files too, is the next iteration's "rest"
                position = _Position(iteration + 1, record.total_env_steps, record.elapsed_s)
                audience.on_iteration(record)
                if position.iteration % settings.run.checkpoint_every == 0:
                    saved = _save(settings, folder, crew, position)
        except Interrupted:
            if saved != position.iteration:
                saved = _save(settings, folder, crew, position)
            raise
        if saved != position.iteration:
            _save(settings, folder, crew, position)


def _learn(
    settings: Settings, crew: _Crew, assignments: Sequence[Assignment]
) -> tuple[Collected, UpdateMetrics]:
    """Collect a meta-batch and update from it; again, where rollouts are lost in between."""
    parameters = ray.put(published(settings, crew.learner.state))
    collected = crew.pool.collect(parameters, assignments)
    while True:
        try:
            rollouts = [one.rollouts for one in collected.rollouts]
            update = crew.learner.update(rollouts)
        except RolloutsLost as lost:
            crew.note(
                Observation(Failure.ROLLOUTS_LOST, "the meta-update", "the learner", 0, str(lost))
            )
            collected = crew.pool.collect(parameters, assignments, collected)
        else:
            crew.account(collected.counts, len(assignments))
            return collected, update


@contextmanager
def _crew(
    settings: Settings,
    folder: RunFolder,
    audience: _Audience,
    stop: StopRequest,
    resume: Checkpoint | None,
) -> Iterator[_Crew]:
    """Start the actors, say so, and end them whatever happens."""
    plan = plan_resources(settings.cluster, ray.cluster_resources())
    spec = policy_spec(settings)
    namespace = f"maml_ray/{settings.run.name}/{ray.get_runtime_context().get_job_id()}"
    faults = FaultLog(settings.faults, settings.cluster.max_task_attempts)
    learner = LearnerClient(
        settings,
        spec,
        plan,
        namespace,
        state=resume.learner if resume else None,
        threads=None,
        faults=faults,
        on_event=audience.on_event,
        check_stop=stop.check,
    )
    pool = RolloutPool(
        settings,
        namespace,
        faults=faults,
        on_event=audience.on_event,
        check_stop=stop.check,
    )
    try:
        description = learner.wait_until_ready()
        actors = pool.wait_until_ready()
        _settle_in(folder, settings)
        audience.on_start(
            StartReport(
                run_directory=str(folder.path),
                first_iteration=resume.iteration if resume else 0,
                rollout_actors=len(actors),
                learner=description,
                ray_address=ray.get_runtime_context().gcs_address,
                dashboard_url=dashboard_url(),
            )
        )
        yield _Crew(spec, learner, pool, faults, audience.on_event)
    finally:
        pool.close()
        learner.close()


def _settle_in(folder: RunFolder, settings: Settings) -> None:
    """Make the run folder, now that the run can begin: a refused one leaves nothing behind."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.settings.write_text(dump_settings(settings), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"cannot write to the run folder {folder.path}: {error.strerror}"
        ) from None


def _record(
    settings: Settings,
    crew: _Crew,
    position: _Position,
    update: UpdateMetrics,
    collected: Collected,
    wall_s: float,
) -> IterationRecord:
    actors = max(1, min(collected.actors, settings.meta_batch.tasks))
    return IterationRecord(
        iteration=position.iteration,
        iterations=settings.run.iterations,
        update=update,
        timings=IterationTimings(
            wall_s=wall_s,
            collect_s=sum(one.timings.collect_s for one in collected.rollouts) / actors,
            adapt_s=sum(one.timings.adapt_s for one in collected.rollouts) / actors,
            learn_s=update.learn_s,
        ),
        total_env_steps=position.total_env_steps + update.env_steps,
        elapsed_s=position.elapsed_s + wall_s,
        faults=FaultFigures(
            actors=collected.actors,
            **asdict(collected.counts),
            failures=crew.faults.total,
            learner_restarts=crew.learner.restarts,
        ),
    )


def _save(settings: Settings, folder: RunFolder, crew: _Crew, position: _Position) -> int:
    """Write a checkpoint of the finished iterations; how many they are."""
    checkpoint = Checkpoint(
        iteration=position.iteration,
        total_env_steps=position.total_env_steps,
        elapsed_s=position.elapsed_s,
        spec=crew.spec,
        learner=crew.learner.state,
    )
    try:
        save_checkpoint(folder.checkpoints, checkpoint, keep=settings.run.keep_checkpoints)
    except OSError as error:
        raise RunFolderError(
            f"cannot write a checkpoint to {folder.checkpoints}: {error.strerror or error}"
        ) from None
    return position.iteration


def _position_of(resume: Checkpoint | None) -> _Position:
    if resume is None:
        return _Position()
    return _Position(resume.iteration, resume.total_env_steps, resume.elapsed_s)


class _Audience:
    """All observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_start(self, report: StartReport) -> None:
        for observer in self._observers:
            observer.on_start(report)

    def on_iteration(self, record: IterationRecord) -> None:
        for observer in self._observers:
            observer.on_iteration(record)

    def on_event(self, message: str) -> None:
        for observer in self._observers:
            observer.on_event(message)
