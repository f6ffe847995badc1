"""Make a run the trainable of a Ray Tune sweep over settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from maml_ray.common.errors import UserError
from maml_ray.common.locations import escape_path, expand_path, is_url
from maml_ray.config.settings import Settings
from maml_ray.persistence.checkpoint_store import has_checkpoints, load_newest_checkpoint
from maml_ray.persistence.file_lock import lock_run_dir
from maml_ray.persistence.records import IterationRecord, Observer
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.run_storage import (
    check_locations,
    open_run_storage,
    storage_location,
)
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.runs.resume import check_never_saved
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.connection.address import check_address, find_address
from maml_ray.tasks.loading import as_users_own

_MAX_NAME_LENGTH = 50
"""Longest run name in characters; the trial's id is appended."""


def tune_objective(settings: Settings | None = None) -> Any:
    """Return a trainable for :class:`ray.tune.Tuner` that trains one run per trial.

    A trial's ``config`` names settings by their path, such as ``"inner.learning_rate"``. Each
    iteration reports the keys of ``metrics.jsonl`` and ``run_folder``, which
    :func:`maml_ray.load` reads. A trial requests one CPU per rollout actor
    (``cluster.rollout_actors``, by default one); the learner alternates with the actors and uses
    as many threads. With ``cluster.learner_device: cuda`` it also requests a GPU. A trial that
    Tune restarts resumes from its last checkpoint.

    Args:
        settings: settings of all trials, before their ``config``; None for the defaults. Run
            directories are created in ``run.directory``, relative to the current directory.

    Raises:
        UserError: Ray Tune is not installed, or ``settings`` are none.
        ResourceError: no cluster answers at ``RAY_ADDRESS``, which Tune would join.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise UserError(
            f"settings = {settings!r:.80} is not allowed: write "
            'tune_objective(maml_ray.load_settings(preset="direction"))'
        )
    try:
        from ray import tune
    except ImportError as error:
        raise UserError(
            f"a sweep needs Ray Tune ({error.name or 'a package of it'} is not installed): "
            "pip install 'maml-ray[tune]'"
        ) from None
    if not ray.is_initialized():  # the Tuner calls ray.init, which tries for many minutes
        check_address(find_address(None))
    settings = _with_fixed_resources(as_users_own(settings or Settings()))
    actors, gpu = settings.cluster.rollout_actors or 1, settings.cluster.learner_device == "cuda"
    bundles = [{}, *([{"GPU": 1.0}] if gpu else []), *[{"CPU": 1.0}] * actors]
    return tune.with_resources(_make_trainable(settings), tune.PlacementGroupFactory(bundles))


def _with_fixed_resources(settings: Settings) -> Settings:
    """Fix what would otherwise depend on the whole cluster or on a trial's working directory."""
    cluster, run = settings.cluster, settings.run
    actors = cluster.rollout_actors or 1
    device = "cuda" if cluster.learner_device == "cuda" else "cpu"
    threads = cluster.learner_threads or actors
    resources = {"rollout_actors": actors, "learner_device": device, "learner_threads": threads}
    resources["standby_learner"] = False  # a trial reserves no GPU for it
    check_locations(settings)
    places = {"directory": escape_path(expand_path(run.directory, "run.directory").absolute())}
    if (storage := storage_location(run)) is not None and not is_url(storage):
        places["storage"] = escape_path(Path(storage).absolute())
    return settings.model_copy(
        update={
            "cluster": cluster.model_copy(update=resources),
            "run": run.model_copy(update=places),
        }
    )


def _make_trainable(settings: Settings) -> Callable[[dict[str, Any]], None]:
    def maml_ray(config: dict[str, Any]) -> None:  # Tune names trials after the function
        from ray import tune

        # The run name names actors and the run directory: it must differ between trials.
        name = f"{settings.run.name[:_MAX_NAME_LENGTH]}-{tune.get_context().get_trial_id()}"
        _train_trial(settings.replace({**config, "run.name": name}), tune.report)

    return maml_ray


def _train_trial(settings: Settings, report: Callable[[dict[str, Any]], None]) -> None:
    run_dir = RunDir(expand_path(settings.run.directory, "run.directory") / settings.run.name)
    with lock_run_dir(run_dir.path):
        storage = open_run_storage(run_dir, settings.run)
        resume = load_newest_checkpoint(storage)[0] if has_checkpoints(storage) else None
        if resume is None:
            check_never_saved(run_dir, storage)
        log = MetricsLog(run_dir, resume.iteration if resume else 0)
        observers: list[Observer] = [log, _TuneReporter(run_dir, report)]
        try:
            train_on_ray(settings, run_dir, observers=observers, resume=resume)
        finally:
            log.close()


class _TuneReporter(Observer):
    """Report each iteration to Tune, which may stop the trial there."""

    def __init__(self, run_dir: RunDir, report: Callable[[dict[str, Any]], None]) -> None:
        self._run_dir, self._report = run_dir, report

    def on_iteration(self, record: IterationRecord) -> None:
        self._report({**record.as_row(), "run_folder": str(self._run_dir.path)})
