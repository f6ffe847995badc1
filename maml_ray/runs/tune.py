"""A run as a trial of Ray Tune: settings swept, iterations reported, hopeless trials stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maml_ray.common.errors import UserError
from maml_ray.common.json_data import check_json
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.persistence.checkpoint_store import has_checkpoints, load_newest_checkpoint
from maml_ray.persistence.file_lock import lock_run_dir
from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.run_storage import open_run_storage
from maml_ray.reporting.metrics_log import MetricsLog
from maml_ray.runs.training_loop import train_on_ray

_LONGEST_NAME = 50
"""Of a run: a trial's id follows it."""


def tune_objective(settings: Settings | None = None) -> Any:
    """What :class:`ray.tune.Tuner` takes as its trainable: one run for each point of a sweep.

    A trial's ``config`` names settings by their path, such as ``"inner.learning_rate"``. Each
    iteration is reported with everything that stands in a line of ``metrics.jsonl``, and
    ``run_folder``, which :func:`maml_ray.load` reads. A trial asks Tune for a CPU for each rollout
    actor, which is ``cluster.rollout_actors``, or one; the learner takes turns with them and
    computes with as many threads. With ``cluster.learner_device: cuda`` it asks for a GPU too.
    A trial that Tune begins again goes on from its last checkpoint.

    Args:
        settings: what every trial has but for its ``config``; all defaults if None. Run folders
            are made under ``run.directory``, as seen from here.

    Raises:
        UserError: Ray Tune is not installed.
    """
    try:
        from ray import tune
    except ImportError as error:
        raise UserError(
            f"a sweep needs Ray Tune ({error.name or error} is not there): "
            "pip install 'maml-ray[tune]'"
        ) from None
    settings = _for_trials(settings or Settings())
    actors, gpu = settings.cluster.rollout_actors or 1, settings.cluster.learner_device == "cuda"
    bundles = [{}, *([{"GPU": 1.0}] if gpu else []), *[{"CPU": 1.0}] * actors]
    return tune.with_resources(_trial_of(settings), tune.PlacementGroupFactory(bundles))


def with_config(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """``settings`` with the values of a trial's ``config``, which are named by their paths.

    Raises:
        SettingsError: there is no such setting, or its value is not allowed.
    """
    data = settings.model_dump(mode="json")
    for path, value in config.items():
        *above, key = path.split(".")
        place = data
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise SettingsError(f"{path:.80} is not a setting: {part:.80} has none below it")
        place[key] = value.item() if hasattr(value, "item") else value
    return validate_settings(check_json(data))


def _for_trials(settings: Settings) -> Settings:
    """Nothing left open that would be decided by the whole cluster, or by a trial's own folder."""
    cluster, run = settings.cluster, settings.run
    actors = cluster.rollout_actors or 1
    device = "cuda" if cluster.learner_device == "cuda" else "cpu"
    threads = cluster.learner_threads or actors
    kept = {"rollout_actors": actors, "learner_device": device, "learner_threads": threads}
    directory = str(Path(run.directory).absolute())
    return settings.model_copy(
        update={
            "cluster": cluster.model_copy(update=kept),
            "run": run.model_copy(update={"directory": directory}),
        }
    )


def _trial_of(settings: Settings) -> Callable[[dict[str, Any]], None]:
    def maml_ray(config: dict[str, Any]) -> None:  # Tune calls the trials after it
        from ray import tune

        # The name is in the actors' namespace, and in the folder's: each trial has its own.
        name = f"{settings.run.name[:_LONGEST_NAME]}-{tune.get_context().get_trial_id()}"
        _run(with_config(settings, {**config, "run.name": name}), tune.report)

    return maml_ray


def _run(settings: Settings, report: Callable[[dict[str, Any]], None]) -> None:
    folder = RunDir(Path(settings.run.directory) / settings.run.name)
    with lock_run_dir(folder.path):
        storage = open_run_storage(folder, settings)
        resume = load_newest_checkpoint(storage)[0] if has_checkpoints(storage) else None
        log = MetricsLog(folder, resume.iteration if resume else 0)
        observers: list[Observer] = [log, _Reporter(folder, report)]
        try:
            train_on_ray(settings, folder, observers=observers, resume=resume)
        finally:
            log.close()


class _Reporter:
    """An observer that tells Tune of each iteration, which may end the trial there."""

    def __init__(self, folder: RunDir, report: Callable[[dict[str, Any]], None]) -> None:
        self._folder, self._report = folder, report

    def on_start(self, report: StartReport) -> None:
        pass

    def on_iteration(self, record: IterationRecord) -> None:
        self._report({**record.as_row(), "run_folder": str(self._folder.path)})

    def on_event(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass
