"""The meta-training loop on Ray.

    learner publishes parameters -> actors collect, adapt, collect -> learner updates -> repeat

The loop moves object references and metrics; it holds neither trajectories nor gradients. It keeps
the learner's last state, which is small: after the failure of an actor or of the learner, training
continues from that state to bit-identical parameters, since every random seed is derived from its
purpose.

With ``meta_batch.async_collection`` the actors collect the next meta-batch while the learner
updates: see :mod:`~maml_ray.learning.staleness`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import ray

from maml_ray.common.commands import resume_hint
from maml_ray.common.errors import Interrupted, TrainingFailed
from maml_ray.common.signals import StopRequest
from maml_ray.config.sections import FaultSettings
from maml_ray.config.settings import Settings
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
from maml_ray.policies.bounds_warning import bounds_warning
from maml_ray.rollouts.first_steps import try_first_steps
from maml_ray.runs.observers import ObserverList
from maml_ray.runs.session import open_checkpoint_writer, open_session
from maml_ray.runtime.actor_system import ActorSystem, start_actors
from maml_ray.runtime.connection.address import find_address
from maml_ray.runtime.connection.connect import connected, is_local
from maml_ray.runtime.ray_internals import get_dashboard_url
from maml_ray.runtime.rollout_pool import CollectedBatch
from maml_ray.tasks.loading import OwnTasks, recorded_module, resolve_tasks
from maml_ray.tasks.task import TaskDistribution

EXIT_SAVE_TIMEOUT_S = 4.0
"""Time limit of the last checkpoint after a signal or a failure: Ray kills a stopping job soon."""


@dataclass(frozen=True)
class _Progress:
    """Finished iterations, environment steps and training time of a run."""

    iteration: int = 0
    total_env_steps: int = 0
    elapsed_s: float = 0.0

    @classmethod
    def of(cls, resume: Checkpoint | None) -> _Progress:
        """Return the progress at which a run starts or resumes."""
        if resume is None:
            return cls()
        return cls(resume.iteration, resume.total_env_steps, resume.elapsed_s)


def train_on_ray(
    settings: Settings,
    run_dir: RunDir,
    *,
    observers: Sequence[Observer] = (),
    resume: Checkpoint | None = None,
    new: bool = False,
    own_tasks: OwnTasks | None = None,
) -> None:
    """Meta-train on Ray, writing periodic checkpoints and a final one.

    Args:
        settings: settings of the run.
        run_dir: run directory, created once the actors are up.
        observers: receive the start report, iteration records and events; closed by the caller.
        resume: checkpoint to continue from; None starts a new run.
        new: fail if the run's storage already belongs to a run.
        own_tasks: tasks of the run if they were given in Python.

    Raises:
        ResourceError: the cluster does not exist or lacks the requested resources.
        TrainingFailed: a work item cannot be done, Ray is lost or the storage does not work; the
            message says where the finished iterations are saved.
        Interrupted: SIGINT or SIGTERM; the finished iterations are checkpointed.
        Superseded: a newer attempt at the run has started.
        RunDirError: the run directory or storage cannot be written or belongs to another run.
        SettingsError: the tasks or their environment cannot be used.
    """
    observer_list, progress = ObserverList(observers), _Progress.of(resume)
    tasks = resolve_tasks(settings.task, own_tasks)
    spec = policy_spec(settings, tasks)
    if (warning := bounds_warning(spec)) is not None:
        observer_list.on_event(f"warning: {warning}")
    try_first_steps(settings, tasks)
    first = _assignments(settings, tasks, progress.iteration)
    address = settings.cluster.address
    observer_list.on_status(
        "starting Ray"
        if is_local(address)
        else f"joining the Ray cluster at {find_address(address).value}"
    )

    def exit_note() -> str:
        module = recorded_module(settings.task)
        return resume_hint(str(run_dir.path), module) if run_dir.settings.exists() else ""

    began = time.perf_counter()
    with (
        connected(address, on_event=observer_list.on_event, exit_note=exit_note) as session,
        nullcontext(time.perf_counter()) as connected_at,
        StopRequest(session.check) as stop,
        start_actors(
            settings,
            spec,
            resume,
            first,
            on_event=observer_list.on_event,
            check_stop=stop.check,
            own_tasks=own_tasks,
            on_status=observer_list.on_status,
        ) as actors,
        closing(Publisher(settings, spec, actors.latest, observer_list.on_event)) as publisher,
    ):
        observer_list.add(RayMetrics(settings.run.name), publisher)
        storage = open_session(run_dir, settings, resume, new=new)
        attempt = storage.lease.attempt
        seconds = (connected_at - began, time.perf_counter() - connected_at)
        observer_list.on_start(_start_report(run_dir, actors, resume, attempt, seconds))
        with open_checkpoint_writer(settings, run_dir, storage, stop.supersede) as writer:
            _TrainingLoop(
                settings,
                tasks,
                actors,
                writer,
                observer_list,
                stop.check,
                attempt,
                progress,
                session.explaining,
            ).run()
        observer_list.on_status("stopping actors and Ray")


@dataclass
class _TrainingLoop:
    """Run the remaining iterations of a run."""

    settings: Settings
    tasks: TaskDistribution
    actors: ActorSystem
    writer: AsyncCheckpointWriter
    observers: ObserverList
    check_stop: Callable[[], None]
    attempt: int
    progress: _Progress
    explaining: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self) -> None:
        """Train to the last iteration; on a signal or failure, save what is finished.

        After :class:`Superseded` nothing is written: the run belongs to a newer attempt.
        """
        try:
            with self.explaining():
                self._iterate()
            self.observers.on_status("saving the last checkpoint")
            self._save_last(self.settings.cluster.task_timeout_s, self.check_stop)
            self.check_stop()
        except (Interrupted, TrainingFailed) as error:
            self._save_before_exit(error)
            raise

    def _iterate(self) -> None:
        started = self.actors.started_at  # before the wait for the learner, which counts
        first = self.progress.iteration
        following = _assignments(self.settings, self.tasks, first)
        for iteration in range(first, self.settings.run.iterations):
            assignments = following
            following = _assignments(self.settings, self.tasks, iteration + 1)
            in_advance = following if self.settings.meta_batch.async_collection else []
            collected, update = self.actors.run_iteration(assignments, in_advance)
            if not in_advance:  # the actors work while the driver writes
                self.actors.prefetch(following)
            now = time.perf_counter()
            record = self._record(update, collected, now - started)
            started = now  # the rest of this body counts as the next iteration's ``rest_s``
            self.progress = _Progress(iteration + 1, record.total_env_steps, record.elapsed_s)
            self.observers.on_iteration(record)
            for name in _never_reported(update) if iteration == first else ():
                self.observers.on_event(
                    f"no environment reported info[{name!r}], which task.info_metrics names, in "
                    "this iteration: see 'maml-ray check' for what they report"
                )
            self._save(update)

    def _record(
        self, update: UpdateMetrics, collected: CollectedBatch, wall_s: float
    ) -> IterationRecord:
        busy_actors = max(1, min(collected.actors, self.settings.meta_batch.tasks))
        timings = [rollouts.timings for rollouts in collected.rollouts]
        return IterationRecord(
            iteration=self.progress.iteration,
            iterations=self.settings.run.iterations,
            update=update,
            timings=IterationTimings(
                wall_s=wall_s,
                collect_s=sum(one.collect_s for one in timings) / busy_actors,
                adapt_s=sum(one.adapt_s for one in timings) / busy_actors,
                learn_s=update.learn_s,
            ),
            total_env_steps=self.progress.total_env_steps + update.env_steps,
            elapsed_s=self.progress.elapsed_s + wall_s,
            faults=self.actors.fault_counts(collected),
            checkpoint_age_s=self.writer.age_s,
            attempt=self.attempt,
        )

    def _save(self, update: UpdateMetrics) -> None:
        """Submit a checkpoint if one is due, and report on earlier ones.

        Raises:
            TrainingFailed: the storage has failed too often, or a fault budget is spent.
        """
        if math.isfinite(update.return_after):
            behavior_version = update.version - 1 - update.staleness
            self.writer.record_score(CheckpointScore(behavior_version, update.return_after))
        if self.progress.iteration % self.settings.run.checkpoint_every == 0:
            self.writer.submit(self._checkpoint())
        for message in self.writer.poll_messages():
            self.observers.on_event(message)
        problem = check_fault_budget(update, self.settings.faults)
        if problem is not None:
            raise TrainingFailed(problem)

    def _save_before_exit(self, error: Interrupted | TrainingFailed) -> None:
        """Save the finished iterations; if that fails, report it along with ``error``."""
        try:
            self._save_last(EXIT_SAVE_TIMEOUT_S)
        except TrainingFailed as save_error:
            both: Interrupted | TrainingFailed
            if isinstance(error, Interrupted):
                both = Interrupted(error.signal_number, str(save_error))
            else:  # of the same class, which has the exit code
                both = type(error)(f"{error}; {save_error}")
            both.run = save_error.run
            raise both from None

    def _save_last(self, timeout_s: float, check_stop: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint of all finished iterations, unless it is written already."""
        if self.progress.iteration > (self.writer.last_submitted or 0):
            self.writer.submit(self._checkpoint())
        self.writer.flush(timeout_s, check_stop)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            iteration=self.progress.iteration,
            total_env_steps=self.progress.total_env_steps,
            elapsed_s=self.progress.elapsed_s,
            spec=self.actors.spec,
            learner=self.actors.learner.state,
        )


def check_fault_budget(update: UpdateMetrics, faults: FaultSettings) -> str | None:
    """Return why the numerical faults of a run exceed their budget; None if they do not."""
    if update.skipped is not None and update.skipped_in_a_row > faults.skipped_updates:
        return (
            f"{update.skipped_in_a_row} updates in a row were skipped, and faults.skipped_updates "
            f"allows {faults.skipped_updates}; the last: {update.skipped}"
        )
    if update.discarded_episodes > faults.discarded_episodes:
        return (
            f"{update.discarded_episodes} episodes were discarded and drawn again, and "
            f"faults.discarded_episodes allows {faults.discarded_episodes}"
        )
    return None


def _never_reported(update: UpdateMetrics) -> list[str]:
    """Return the names in ``task.info_metrics`` that no environment reported."""
    after = update.infos_after
    return [name for name, mean in update.infos_before.items() if mean is None is after[name]]


def _assignments(settings: Settings, tasks: TaskDistribution, iteration: int) -> list[Assignment]:
    """Return the assignments of one iteration; empty past the last."""
    if iteration >= settings.run.iterations:
        return []
    sampled = sample_tasks(settings, tasks, iteration)
    version = collection_version(settings.meta_batch, iteration)
    return [Assignment(iteration, index, task, version) for index, task in enumerate(sampled)]


def _start_report(
    run_dir: RunDir,
    actors: ActorSystem,
    resume: Checkpoint | None,
    attempt: int,
    seconds: tuple[float, float],
) -> StartReport:
    return StartReport(
        run_directory=str(run_dir.path),
        first_iteration=resume.iteration if resume else 0,
        rollout_actors=len(actors.locations),
        learner=actors.learner_device,
        ray_address=ray.get_runtime_context().gcs_address,
        dashboard_url=get_dashboard_url(),
        attempt=attempt,
        connect_s=seconds[0],
        actors_s=seconds[1],
    )
