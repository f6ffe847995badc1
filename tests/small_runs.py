"""Untrained policies and run folders of small networks and short episodes, made in no time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

from maml_ray.config.loading import dump_settings, validate_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import save_checkpoint
from maml_ray.persistence.records import (
    FaultCounts,
    IterationRecord,
    IterationTimings,
    StartReport,
)
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.reporting.metrics_log import MetricsLog
from tests.learning_runs import Run


def settings(family: str = "point-navigation", **sections: Any) -> Settings:
    data: dict[str, Any] = {
        "run": {"name": "small"},
        "task": {"name": family, "horizon": 8},
        "policy": {"hidden_sizes": [4], "action_scale": 0.1},
        "meta_batch": {"tasks": 2, "episodes": 3},
        "inner": {"learning_rate": 0.5},
    }
    for section, values in sections.items():
        data.setdefault(section, {}).update(values)
    return validate_settings(data)


def agent_of(chosen: Settings) -> Agent:
    spec = policy_spec(chosen)
    published = MetaLearner(chosen, spec).publish()
    return Agent(chosen, spec, dict(published.values), published.normalizer)


def run_of(chosen: Settings, path: Path) -> RunDir:
    """A run folder with a checkpoint, as training leaves it."""
    folder, spec = RunDir(path), policy_spec(chosen)
    path.mkdir(parents=True)
    folder.settings.write_text(dump_settings(chosen), encoding="utf-8")
    state = MetaLearner(chosen, spec).state()
    save_checkpoint(LocalStorage(folder.path), Checkpoint(1, 10, 1.0, spec, state), keep=1)
    return folder


@contextmanager
def quick_pictures() -> Iterator[None]:
    """Figures are made, but not drawn to pixels."""

    def save(figure: Figure, target: Path | io.BytesIO, **keywords: Any) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"no picture")
        else:
            target.write(b"<svg></svg>")

    with mock.patch.object(Figure, "savefig", save):
        yield


def trained_run(chosen: Settings, path: Path) -> RunDir:
    """A run folder as training leaves it, trained in this process, without Ray."""
    run, folder, env_steps = Run(chosen), run_of(chosen, path), 0
    log = MetricsLog(folder)
    log.on_start(StartReport(str(path), 0, 1, "CPU", "", None))
    for iteration in range(chosen.run.iterations):
        update = run.learner.update(run.collect())
        env_steps += update.env_steps
        log.on_iteration(
            IterationRecord(
                iteration,
                chosen.run.iterations,
                update,
                IterationTimings(wall_s=1.0, collect_s=0.5, adapt_s=0.1, learn_s=0.2),
                env_steps,
                iteration + 1.0,
                FaultCounts(1, chosen.meta_batch.tasks, 0, 0, chosen.meta_batch.tasks, 0, 0, 0, 0),
            )
        )
    log.close()
    run.worker.close()
    last = Checkpoint(chosen.run.iterations, env_steps, 1.0, run.worker.spec, run.learner.state())
    save_checkpoint(LocalStorage(folder.path), last, keep=1)
    return folder
