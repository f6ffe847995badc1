"""Training that takes no time: real folders, storage and checkpoints of made-up updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maml_ray.checkpoint import Score
from maml_ray.checkpoint_files import Checkpoint
from maml_ray.config import Settings
from maml_ray.learner import MetaLearner
from maml_ray.learner_state import LearnerState
from maml_ray.records import Observer, StartReport
from maml_ray.rollout import policy_spec
from maml_ray.run_folder import RunFolder
from maml_ray.saving import saving, settle_in
from tests.report.conftest import made_up_record

WAIT_S = 30.0


@dataclass
class MadeUpTraining:
    """In the place of ``maml_ray.runs.train_on_ray``.

    Attributes:
        before: called before each iteration with its number; may raise to end the run there.
        spans: first iteration and attempt of every run that came here.
    """

    before: Callable[[int], object] = lambda iteration: None
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __call__(
        self,
        settings: Settings,
        folder: RunFolder,
        *,
        observers: Sequence[Observer] = (),
        resume: Checkpoint | None = None,
        new: bool = False,
    ) -> None:
        storage = settle_in(folder, settings, resume, new=new)
        first, attempt = resume.iteration if resume else 0, storage.attempt.number
        self.spans.append((first, attempt))
        report = StartReport(str(folder.path), first, 1, "CPU", "", None, attempt)
        for observer in observers:
            observer.on_start(report)
        with saving(settings, folder, storage) as writer:
            for iteration in range(first, settings.run.iterations):
                self.before(iteration)
                for observer in observers:
                    observer.on_iteration(replace(made_up_record(iteration), attempt=attempt))
                writer.note_score(Score(iteration, -abs(iteration - 1.0)))  # checkpoint 1 is best
                writer.submit(checkpoint_of(settings, iteration + 1))
                writer.flush(WAIT_S)
                writer.news()


def checkpoint_of(settings: Settings, iteration: int) -> Checkpoint:
    """What a made-up run of ``settings`` saves after so many iterations."""
    spec = policy_spec(settings)
    state: LearnerState = MetaLearner(settings, spec).state()
    moved: dict[str, Any] = {
        name: value + 1e-3 * iteration for name, value in state.parameters.items()
    }
    return Checkpoint(iteration, 10 * iteration, 1.0, spec, replace(state, parameters=moved))
