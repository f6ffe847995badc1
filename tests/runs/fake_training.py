"""A stand-in for training: real files of made-up updates, in no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.learning.state import LearnerState
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import CheckpointScore
from maml_ray.persistence.records import Observer, StartReport
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.session import open_checkpoint_writer, open_session
from maml_ray.tasks.loading import resolve_tasks
from tests.reporting.conftest import made_up_record
from tests.small_runs import quick_pictures

WAIT_S = 30.0


@dataclass
class FakeTraining:
    """Replace ``maml_ray.runs.train.train_on_ray``.

    Attributes:
        before: called before each iteration with its number; may raise to end the run there.
        spans: first iteration and attempt of every run that came here.
    """

    before: Callable[[int], object] = lambda iteration: None
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __call__(
        self,
        settings: Settings,
        folder: RunDir,
        *,
        own_tasks: Any = None,
        observers: Sequence[Observer] = (),
        resume: Checkpoint | None = None,
        new: bool = False,
    ) -> None:
        storage = open_session(folder, settings, resume, new=new)
        first, attempt = resume.iteration if resume else 0, storage.lease.attempt
        self.spans.append((first, attempt))
        report = StartReport(str(folder.path), first, 1, "CPU", "", None, attempt)
        for observer in observers:
            observer.on_start(report)
        with open_checkpoint_writer(settings, folder, storage) as writer:
            for iteration in range(first, settings.run.iterations):
                self.before(iteration)
                for observer in observers:
                    observer.on_iteration(replace(made_up_record(iteration), attempt=attempt))
                writer.record_score(
                    CheckpointScore(iteration, -abs(iteration - 1.0))
                )  # checkpoint 1 is best
                writer.submit(checkpoint_of(settings, iteration + 1, own_tasks))
                writer.flush(WAIT_S)
                writer.poll_messages()


def checkpoint_of(settings: Settings, iteration: int, own_tasks: Any = None) -> Checkpoint:
    """Return the checkpoint of a made-up run of ``settings`` after ``iteration`` iterations."""
    spec = policy_spec(settings, resolve_tasks(settings.task, own_tasks))
    state: LearnerState = MetaLearner(settings, spec).state()
    moved: dict[str, Any] = {
        name: value + 1e-3 * iteration for name, value in state.parameters.items()
    }
    return Checkpoint(iteration, 10 * iteration, 1.0, spec, replace(state, parameters=moved))


@contextmanager
def training_made_up(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeTraining]:
    """Let ``maml_ray.train`` make up its training, without Ray, in ``folder``."""
    made_up = FakeTraining()
    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", made_up)
    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    monkeypatch.chdir(folder)
    with quick_pictures():
        yield made_up
