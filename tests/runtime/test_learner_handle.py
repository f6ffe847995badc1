"""The learner handle under failures of the learner's start and of its updates."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ObjectLostError, ObjectStoreFullError

from maml_ray.common.errors import ResourceError, TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import RolloutWorker
from maml_ray.learning.state import LearnerState, UpdateMetrics, initial_learner_state
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime.actors import LearnerActor
from maml_ray.runtime.capacity import ResourcePlan
from maml_ray.runtime.learner_handle import LearnerHandle, RolloutsLost
from tests.runtime.test_rollout_pool import assignments, context_of, settings

pytestmark = pytest.mark.usefixtures("local_ray")
Starter = Callable[..., LearnerHandle]


class FlawedLearner(LearnerActor):
    """Fail once at the start or in an update, as the file ``flaw`` says."""

    def __init__(self, chosen: Settings, spec: Any, device: str, *others: Any) -> None:
        flaw = Path(chosen.run.directory) / "flaw"
        kind = flaw.read_text() if flaw.exists() else ""
        if kind == "dies":
            flaw.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "blind":  # as where Ray has a GPU, and PyTorch is a build without
            torch.cuda.is_available = lambda: False
            insisting = chosen.cluster.model_copy(update={"learner_device": "cuda"})
            chosen, device = chosen.model_copy(update={"cluster": insisting}), "cuda"
        super().__init__(chosen, spec, device, *others)

    def update(self, *rollouts: TaskRollouts) -> tuple[UpdateMetrics, LearnerState]:
        flaw = Path(self._learner.settings.run.directory) / "flaw"
        done = super().update(*rollouts)
        if not flaw.exists():
            return done
        kind = flaw.read_text()
        flaw.unlink()
        raise {
            "full": ObjectStoreFullError("no room for the state"),
            "lost": ObjectLostError("0" * 56, None, ""),
            "own": ValueError("the mathematics is on fire"),
        }[kind]


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    before = settings(learner_threads=1)
    run = before.run.model_copy(update={"directory": str(tmp_path)})
    return before.model_copy(update={"run": run})


@pytest.fixture
def start_learner(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    monkeypatch.setattr("maml_ray.runtime.learner_process.LearnerActor", FlawedLearner)
    handles: list[LearnerHandle] = []

    def start(on_event: Callable[[str], None] = lambda message: None) -> LearnerHandle:
        spec = RolloutWorker(chosen).spec
        learner = LearnerHandle(
            chosen,
            spec,
            ResourcePlan(1, 0, "cpu"),
            context_of(chosen, "test-learner", on_event=on_event),
            initial_learner_state(chosen, spec),
        )
        handles.append(learner)
        return learner

    yield start
    for learner in handles:
        learner.close()


@pytest.fixture
def learner(start_learner: Starter) -> LearnerHandle:
    handle = start_learner()
    handle.wait_until_ready()
    return handle


def test_a_learner_that_dies_at_its_start_is_restarted(
    start_learner: Starter, chosen: Settings, tmp_path: Path
) -> None:
    (tmp_path / "flaw").write_text("dies")
    events: list[str] = []
    learner, waits = start_learner(events.append), list[int]()

    def poll_fn(refs: Sequence[ray.ObjectRef[Any]]) -> None:
        waits.append(len(refs))
        ray.wait(list(refs), timeout=0.5)

    assert learner.wait_until_ready(poll_fn) == "CPU, 1 thread"
    assert set(waits) == {1}
    assert learner.restarts == 1
    (message,) = (event for event in events if not event.startswith("waiting"))  # on a busy machine
    assert "the start failed on learner: it could not start" in message
    first = MetaLearner(chosen, RolloutWorker(chosen).spec).state()
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(learner.state.parameters[name], value)


def test_a_learner_that_cannot_start_is_not_restarted(
    start_learner: Starter, tmp_path: Path
) -> None:
    (tmp_path / "flaw").write_text("blind")
    learner = start_learner()
    with pytest.raises(ResourceError, match=r"RuntimeError: .* sees none: install a CUDA"):
        learner.wait_until_ready()
    assert learner.restarts == 0


def rollouts_for(chosen: Settings) -> list[TaskRollouts]:
    worker = RolloutWorker(chosen)
    theta = MetaLearner(chosen, worker.spec).publish()
    return [worker.roll_out(theta, work)[0] for work in assignments(*["backward"] * 5)]


def test_an_update_whose_result_cannot_be_stored_is_repeated(
    learner: LearnerHandle, chosen: Settings, tmp_path: Path
) -> None:
    (tmp_path / "flaw").write_text("full")
    collected = rollouts_for(chosen)
    metrics = learner.update([ray.put(one) for one in collected])
    oracle = MetaLearner(chosen, RolloutWorker(chosen).spec)
    assert oracle.update(collected).loss == metrics.loss
    for name, value in oracle.state().parameters.items():
        np.testing.assert_array_equal(learner.state.parameters[name], value)
    assert learner.restarts == 1


@pytest.mark.parametrize("flaw", ["", "full"])
def test_prefetched_rollouts_give_the_same_update_after_a_restart(
    learner: LearnerHandle, chosen: Settings, tmp_path: Path, flaw: str
) -> None:
    if flaw:
        (tmp_path / "flaw").write_text(flaw)
    collected = rollouts_for(chosen)
    refs = [ray.put(one) for one in collected]
    learner.prefetch(refs[1:4])
    learner.prefetch(refs[:1])
    again = [ray.put(replace(one, query_advantages=-one.query_advantages)) for one in collected[:4]]
    learner.update(refs if flaw else [*again, *refs[4:]])  # what was taken is not prepared again
    oracle = MetaLearner(chosen, RolloutWorker(chosen).spec)
    oracle.update(collected)
    for name, value in oracle.state().parameters.items():
        np.testing.assert_array_equal(learner.state.parameters[name], value)
    assert learner.restarts == bool(flaw)


def test_invalid_prefetched_rollouts_are_reported_by_the_update(
    learner: LearnerHandle, chosen: Settings
) -> None:
    refs = [ray.put(replace(one, version=3)) for one in rollouts_for(chosen)]
    learner.prefetch(refs[:2])
    with pytest.raises(TrainingFailed, match="was collected with version 3"):
        learner.update(refs)


@pytest.mark.parametrize(
    ("flaw", "raised", "words"),
    [("own", TrainingFailed, "the mathematics is on fire"), ("lost", RolloutsLost, None)],
)
def test_an_error_of_the_update_ends_the_run_and_lost_rollouts_are_reported(
    learner: LearnerHandle,
    chosen: Settings,
    tmp_path: Path,
    flaw: str,
    raised: type[Exception],
    words: str | None,
) -> None:
    (tmp_path / "flaw").write_text(flaw)
    with pytest.raises(raised, match=words):
        learner.update([ray.put(one) for one in rollouts_for(chosen)])
    assert learner.restarts == 0
