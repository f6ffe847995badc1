"""The training loop.

    learner publishes parameters -> actors collect, adapt, collect -> learner updates -> again

The loop moves references and figures; it holds neither trajectories nor gradients. What it does
hold is the learner's last state, which is small: whoever dies, training goes on from there, and to
the same bits, since every random number is named by what it is for.

With ``meta_batch.async_collection`` the actors collect the next meta-batch while the learner updates from
this one: see :mod:`~maml_ray.learning.staleness`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import ray

from maml_ray.common.errors import Interrupted, TrainingFailed
from maml_ray.common.signals import StopRequest
from maml_ray.config.settings import FaultSettings, Settings
from maml_ray.learning.rollout_worker import Assignment, policy_spec, sample_tasks
from maml_ray.learning.staleness import collection_version
from maml_ray.learning.state import UpdateMetrics
from maml_ray.monitoring.prometheus import RayMetrics
from maml_ray.monitoring.publisher import Publisher
from maml_ray.persistence.async_writer import AsyncCheckpointWriter
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import CheckpointScore
from maml_ray.persistence.records import IterationRecord, IterationTimings, Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.session import open_checkpoint_writer, open_session
from maml_ray.runtime.actor_system import Crew, crew
from maml_ray.runtime.ray_internals import get_dashboard_url
from maml_ray.runtime.ray_session import connected
from maml_ray.runtime.rollout_pool import Collected
from maml_ray.tasks.registry import resolve_tasks
from maml_ray.tasks.task import TaskDistribution

EXIT_SAVE_TIMEOUT_S = 4.0
"""How long a run that is to stop waits for its last checkpoint: a job is killed soon after."""


@dataclass(frozen=True)
class _Progress:
    """How far a run has come."""

    iteration: int = 0
    total_env_steps: int = 0
    elapsed_s: float = 0.0


def train_on_ray(
    settings: Settings,
    folder: RunDir,
    *,
    observers: Sequence[Observer] = (),
    resume: Checkpoint | None = None,
    new: bool = False,
) -> None:
    """Meta-train on Ray, with a checkpoint every so often and at the end.

    Args:
        settings: of the run.
        folder: where settings and checkpoints go; made once the actors are up.
        observers: told of the start, of every iteration and of events; closed by their owner.
        resume: where to go on; None to begin.
        new: nobody else may have begun this run.

    Raises:
        ResourceError: the cluster is not there or lacks what is asked for.
        TrainingFailed: a piece of work cannot be done, or the storage does not work; what is
            finished is safe where the message says.
        Interrupted: a signal came; the finished iterations have been checkpointed.
        Superseded: a newer attempt at the run has begun.
        RunDirError: the folder or the storage could not be written, or is another run's.
    """
    audience, position = _ObserverList(observers), _position_of(resume)
    tasks, spec = resolve_tasks(settings.task), policy_spec(settings)
    first = _assignments(settings, tasks, position.iteration)
    with (
        connected(settings.cluster.address),
        StopRequest() as stop,
        crew(
            settings, spec, resume, first, on_event=audience.on_event, check_stop=stop.check
        ) as actors,
        closing(Publisher(settings, spec, actors.newest, audience.on_event)) as service,
    ):
        audience.join(RayMetrics(settings.run.name), service)
        storage = open_session(folder, settings, resume, new=new)
        attempt = storage.attempt.number
        audience.on_start(_start_report(folder, actors, resume, attempt))
        with open_checkpoint_writer(settings, folder, storage, stop.give_way) as writer:
            _TrainingLoop(
                settings, tasks, actors, writer, audience, stop.check, attempt, position
            ).run()


@dataclass
class _TrainingLoop:
    """Iteration after iteration, from ``position`` on."""

    settings: Settings
    tasks: TaskDistribution
    actors: Crew
    writer: AsyncCheckpointWriter
    audience: _ObserverList
    check_stop: Callable[[], None]
    attempt: int
    position: _Progress

    def run(self) -> None:
        """To the end of the run, or until something ends it; what is finished is saved.

        Not where a newer attempt has begun: then nothing more is written.
        """
        try:
            self._iterate()
            self._save_last(self.settings.cluster.task_timeout_s, self.check_stop)
            self.check_stop()
        except (Interrupted, TrainingFailed) as ended:
            self._save_in_a_hurry(ended)
            raise

    def _iterate(self) -> None:
        began = self.actors.began  # the learner may have been waited for since
        for iteration in range(self.position.iteration, self.settings.run.iterations):
            work = _assignments(self.settings, self.tasks, iteration)
            collected, update = self.actors.learn(work, self._ahead(iteration))
            now = time.perf_counter()
            record = self._record(update, collected, now - began)
            began = now  # what follows, files too, is the next iteration's "rest"
            self.position = _Progress(iteration + 1, record.total_env_steps, record.elapsed_s)
            self.audience.on_iteration(record)
            self._save(update)

    def _ahead(self, iteration: int) -> list[Assignment]:
        """What is collected while the learner is at ``iteration``: the next one, or nothing."""
        if not self.settings.meta_batch.async_collection:
            return []
        return _assignments(self.settings, self.tasks, iteration + 1)

    def _record(
        self, update: UpdateMetrics, collected: Collected, wall_s: float
    ) -> IterationRecord:
        at_work = max(1, min(collected.actors, self.settings.meta_batch.tasks))
        timings = [one.timings for one in collected.rollouts]
        return IterationRecord(
            iteration=self.position.iteration,
            iterations=self.settings.run.iterations,
            update=update,
            timings=IterationTimings(
                wall_s=wall_s,
                collect_s=sum(one.collect_s for one in timings) / at_work,
                adapt_s=sum(one.adapt_s for one in timings) / at_work,
                learn_s=update.learn_s,
            ),
            total_env_steps=self.position.total_env_steps + update.env_steps,
            elapsed_s=self.position.elapsed_s + wall_s,
            faults=self.actors.figures(collected),
            checkpoint_age_s=self.writer.age_s,
            attempt=self.attempt,
        )

    def _save(self, update: UpdateMetrics) -> None:
        """A checkpoint, when it is time for one; what there is to tell of those before it.

        Raises:
            TrainingFailed: the storage has failed too often, or too many numbers went wrong.
        """
        if math.isfinite(update.return_after):
            collector = update.version - 1 - update.staleness
            self.writer.record_score(CheckpointScore(collector, update.return_after))
        if self.position.iteration % self.settings.run.checkpoint_every == 0:
            self.writer.submit(self._checkpoint())
        for message in self.writer.poll_messages():
            self.audience.on_event(message)
        problem = check_fault_budget(update, self.settings.faults)
        if problem is not None:
            raise TrainingFailed(problem)

    def _save_in_a_hurry(self, ended: Interrupted | TrainingFailed) -> None:
        """Save what there is; what ended the run is still told where that does not work."""
        try:
            self._save_last(EXIT_SAVE_TIMEOUT_S)
        except TrainingFailed as unsaved:
            if isinstance(ended, Interrupted):
                raise Interrupted(ended.signal_number, str(unsaved)) from None
            raise TrainingFailed(f"{ended}; {unsaved}") from None

    def _save_last(self, deadline_s: float, check: Callable[[], None] = lambda: None) -> None:
        """See to it that all that is finished is safe."""
        if self.position.iteration > (self.writer.last_submitted or 0):
            self.writer.submit(self._checkpoint())
        self.writer.flush(deadline_s, check)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            iteration=self.position.iteration,
            total_env_steps=self.position.total_env_steps,
            elapsed_s=self.position.elapsed_s,
            spec=self.actors.spec,
            learner=self.actors.learner.state,
        )


def check_fault_budget(update: UpdateMetrics, budgets: FaultSettings) -> str | None:
    """Why a run is to end after ``update``, in a sentence; None where it may go on."""
    if update.skipped is not None and update.skipped_in_a_row > budgets.skipped_updates:
        return (
            f"{update.skipped_in_a_row} updates in a row were skipped, and faults.skipped_updates "
            f"allows {budgets.skipped_updates}; the last: {update.skipped}"
        )
    if update.discarded_episodes > budgets.discarded_episodes:
        return (
            f"{update.discarded_episodes} episodes broke and were drawn again, and "
            f"faults.discarded_episodes allows {budgets.discarded_episodes}"
        )
    return None


def _assignments(settings: Settings, tasks: TaskDistribution, iteration: int) -> list[Assignment]:
    """The work of an iteration; none behind the last."""
    if iteration >= settings.run.iterations:
        return []
    drawn = sample_tasks(settings, tasks, iteration)
    version = collection_version(settings, iteration)
    return [Assignment(iteration, index, task, version) for index, task in enumerate(drawn)]


def _start_report(
    folder: RunDir, actors: Crew, resume: Checkpoint | None, attempt: int
) -> StartReport:
    return StartReport(
        run_directory=str(folder.path),
        first_iteration=resume.iteration if resume else 0,
        rollout_actors=len(actors.places),
        learner=actors.learner_place,
        ray_address=ray.get_runtime_context().gcs_address,
        dashboard_url=get_dashboard_url(),
        attempt=attempt,
    )


def _position_of(resume: Checkpoint | None) -> _Progress:
    if resume is None:
        return _Progress()
    return _Progress(resume.iteration, resume.total_env_steps, resume.elapsed_s)


class _ObserverList:
    """All observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def join(self, *observers: Observer) -> None:
        self._observers += observers

    def on_start(self, report: StartReport) -> None:
        for observer in self._observers:
            observer.on_start(report)

    def on_iteration(self, record: IterationRecord) -> None:
        for observer in self._observers:
            observer.on_iteration(record)

    def on_event(self, message: str) -> None:
        for observer in self._observers:
            observer.on_event(message)
