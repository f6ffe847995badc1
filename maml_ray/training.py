"""The training loop.

    learner publishes parameters -> actors collect, adapt, collect -> learner updates -> again

The loop moves references and figures; it holds neither trajectories nor gradients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from maml_ray.checkpoint import Checkpoint, save_checkpoint
from maml_ray.config import Settings, dump_settings
from maml_ray.distributed.cluster import connected, dashboard_url, plan_resources
from maml_ray.distributed.learner_client import LearnerClient
from maml_ray.distributed.pool import Collected, RolloutPool
from maml_ray.errors import Interrupted, RunFolderError
from maml_ray.learner import UpdateMetrics
from maml_ray.policy import PolicySpec
from maml_ray.records import IterationRecord, IterationTimings, Observer, StartReport
from maml_ray.rollout import Assignment, policy_spec, sample_tasks
from maml_ray.run_folder import RunFolder
from maml_ray.stopping import StopRequest
from maml_ray.tasks.lookup import resolve_tasks


@dataclass(frozen=True)
class _Crew:
    """The actors of a run, up and running."""

    spec: PolicySpec
    learner: LearnerClient
    pool: RolloutPool


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
        parameters = crew.learner.publish()
        tasks = resolve_tasks(settings.task)
        began = time.perf_counter()
        try:
            for iteration in range(position.iteration, settings.run.iterations):
                assignments = [
                    Assignment(iteration, index, task, version=iteration)
                    for index, task in enumerate(sample_tasks(settings, tasks, iteration))
                ]
                collected = crew.pool.collect(parameters, assignments)
                update, parameters = crew.learner.update(collected.rollouts)
                now = time.perf_counter()
                record = _record(settings, position, update, collected, now - began)
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
    learner = LearnerClient(settings, spec, plan, namespace, check_stop=stop.check)
    pool = RolloutPool(
        settings,
        plan.rollout_actors,
        namespace,
        on_event=audience.on_event,
        check_stop=stop.check,
    )
    try:
        description = learner.wait_until_ready()
        pool.wait_until_ready()
        if resume is not None:
            learner.load(resume.learner)
        _settle_in(folder, settings)
        audience.on_start(
            StartReport(
                run_directory=str(folder.path),
                first_iteration=resume.iteration if resume else 0,
                rollout_actors=plan.rollout_actors,
                learner=description,
                ray_address=ray.get_runtime_context().gcs_address,
                dashboard_url=dashboard_url(),
            )
        )
        yield _Crew(spec, learner, pool)
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
    position: _Position,
    update: UpdateMetrics,
    collected: Collected,
    wall_s: float,
) -> IterationRecord:
    actors = min(collected.actors, settings.meta_batch.tasks)
    return IterationRecord(
        iteration=position.iteration,
        iterations=settings.run.iterations,
        update=update,
        timings=IterationTimings(
            wall_s=wall_s,
            collect_s=sum(timing.collect_s for timing in collected.timings) / actors,
            adapt_s=sum(timing.adapt_s for timing in collected.timings) / actors,
            learn_s=update.learn_s,
        ),
        total_env_steps=position.total_env_steps + update.env_steps,
        elapsed_s=position.elapsed_s + wall_s,
        retries=collected.retries,
    )


def _save(settings: Settings, folder: RunFolder, crew: _Crew, position: _Position) -> int:
    """Write a checkpoint of the finished iterations; how many they are."""
    checkpoint = Checkpoint(
        iteration=position.iteration,
        total_env_steps=position.total_env_steps,
        elapsed_s=position.elapsed_s,
        spec=crew.spec,
        learner=crew.learner.state(),
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
