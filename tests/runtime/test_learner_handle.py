"""The driver's side of the learner: what it makes of an update that does not come."""

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
from maml_ray.runtime.learner_handle import LearnerHandle, RolloutsLost
from maml_ray.runtime.ray_session import ResourcePlan
from tests.runtime.test_rollout_pool import assignments, context_of, settings

pytestmark = pytest.mark.usefixtures("local_ray")
Begin = Callable[..., LearnerHandle]


class FlawedLearner(LearnerActor):
    """It does what the file ``flaw`` says, at its start or its update, and once only."""

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
def begun(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    monkeypatch.setattr("maml_ray.runtime.learner_handle.LearnerActor", FlawedLearner)
    made: list[LearnerHandle] = []

    def begin(on_event: Callable[[str], None] = lambda message: None) -> LearnerHandle:
        spec = RolloutWorker(chosen).spec
        client = LearnerHandle(
            chosen,
            spec,
            ResourcePlan(1, 0, "cpu"),
            context_of(chosen, "test-learner", on_event=on_event),
            initial_learner_state(chosen, spec),
        )
        made.append(client)
        return client

    yield begin
    for client in made:
        client.close()


@pytest.fixture
def client(begun: Begin) -> LearnerHandle:
    made = begun()
    made.wait_until_ready()
    return made


def test_a_learner_that_dies_at_its_start_is_begun_anew(
    begun: Begin, chosen: Settings, tmp_path: Path
) -> None:
    (tmp_path / "flaw").write_text("dies")
    events: list[str] = []
    client, waits = begun(events.append), list[int]()

    def poll_fn(refs: Sequence[ray.ObjectRef[Any]]) -> None:
        waits.append(len(refs))
        ray.wait(list(refs), timeout=0.5)

    assert client.wait_until_ready(poll_fn) == "CPU, 1 thread"
    assert set(waits) == {1}
    assert client.restarts == 1
    (told,) = (event for event in events if not event.startswith("waiting"))  # on a busy machine
    assert "the start failed on learner: it could not start" in told
    first = MetaLearner(chosen, RolloutWorker(chosen).spec).state()
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(client.state.parameters[name], value)


def test_a_learner_that_cannot_start_is_not_begun_again(begun: Begin, tmp_path: Path) -> None:
    (tmp_path / "flaw").write_text("blind")
    client = begun()
    with pytest.raises(ResourceError, match=r"RuntimeError: .* sees none: install a CUDA"):
        client.wait_until_ready()
    assert client.restarts == 0


def rollouts_for(chosen: Settings) -> list[TaskRollouts]:
    worker = RolloutWorker(chosen)
    theta = MetaLearner(chosen, worker.spec).publish()
    return [worker.roll_out(theta, work)[0] for work in assignments(*["backward"] * 5)]


def test_an_update_whose_answer_finds_no_room_is_made_again_from_the_state_before_it(
    client: LearnerHandle, chosen: Settings, tmp_path: Path
) -> None:
    (tmp_path / "flaw").write_text("full")
    collected = rollouts_for(chosen)
    metrics = client.update([ray.put(one) for one in collected])
    oracle = MetaLearner(chosen, RolloutWorker(chosen).spec)
    assert oracle.update(collected).loss == metrics.loss
    for name, value in oracle.state().parameters.items():
        np.testing.assert_array_equal(client.state.parameters[name], value)
    assert client.restarts == 1


@pytest.mark.parametrize("flaw", ["", "full"])
def test_what_was_sent_ahead_leads_to_the_same_update_by_another_learner_as_well(
    client: LearnerHandle, chosen: Settings, tmp_path: Path, flaw: str
) -> None:
    if flaw:
        (tmp_path / "flaw").write_text(flaw)
    collected = rollouts_for(chosen)
    refs = [ray.put(one) for one in collected]
    client.prefetch(refs[1:4])
    client.prefetch(refs[:1])
    again = [ray.put(replace(one, query_advantages=-one.query_advantages)) for one in collected[:4]]
    client.update(refs if flaw else [*again, *refs[4:]])  # what was taken is not prepared again
    oracle = MetaLearner(chosen, RolloutWorker(chosen).spec)
    oracle.update(collected)
    for name, value in oracle.state().parameters.items():
        np.testing.assert_array_equal(client.state.parameters[name], value)
    assert client.restarts == bool(flaw)


def test_rollouts_that_cannot_be_taken_are_the_updates_to_refuse(
    client: LearnerHandle, chosen: Settings
) -> None:
    refs = [ray.put(replace(one, version=3)) for one in rollouts_for(chosen)]
    client.prefetch(refs[:2])
    with pytest.raises(TrainingFailed, match="was collected with version 3"):
        client.update(refs)


@pytest.mark.parametrize(
    ("flaw", "raised", "words"),
    [("own", TrainingFailed, "the mathematics is on fire"), ("lost", RolloutsLost, "")],
)
def test_an_error_of_its_own_ends_the_run_and_lost_rollouts_are_said(
    client: LearnerHandle,
    chosen: Settings,
    tmp_path: Path,
    flaw: str,
    raised: type[Exception],
    words: str,
) -> None:
    (tmp_path / "flaw").write_text(flaw)
    with pytest.raises(raised, match=words):
        client.update([ray.put(one) for one in rollouts_for(chosen)])
    assert client.restarts == 0
