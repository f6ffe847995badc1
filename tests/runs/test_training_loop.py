"""Test how the training loop ends, without Ray: with everything saved, or superseded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from maml_ray.common.errors import Interrupted, Superseded, TrainingFailed, UserCodeFailed
from maml_ray.common.signals import StopRequest
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_newest_checkpoint,
    read_best_score,
)
from maml_ray.persistence.lease import FencedStorage, acquire_lease
from maml_ray.persistence.records import FaultCounts, IterationRecord, Observer
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.runs import training_loop
from maml_ray.runs.observers import ObserverList
from maml_ray.runs.session import open_checkpoint_writer, open_session
from maml_ray.runs.training_loop import _Progress, _TrainingLoop
from maml_ray.runtime.actor_system import ActorSystem
from maml_ray.tasks.task import Task
from tests.reporting.conftest import made_up_record
from tests.runs.fake_training import checkpoint_of
from tests.small_runs import settings

WAIT_S = 30.0


class Gate(LocalStorage):
    """A storage whose writes can be blocked or made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.full = False

    def write(self, name: str, content: bytes) -> None:
        self.reached.set()
        assert self.open.wait(WAIT_S)
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(name, content)


@dataclass
class FakeActorSystem:
    """Learn nothing, in no time; call ``during`` in each iteration."""

    settings: Settings
    during: Callable[[int], object]
    asked: list[tuple[Any, Any]] = field(default_factory=list)
    handed_out: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        state = checkpoint_of(self.settings, 0)
        self.spec = state.spec
        self.learner = SimpleNamespace(state=state.learner)
        self.started_at = time.perf_counter()

    def run_iteration(self, assignments: Any, prefetched: Any) -> Any:
        iteration = assignments[0].iteration
        self.asked.append((keys(assignments), keys(prefetched)))
        self.during(iteration)
        self.learner.state = replace(self.learner.state, version=iteration + 1)
        behind = iteration - assignments[0].version
        update = made_up_record(iteration, staleness=behind).update
        return SimpleNamespace(actors=1, rollouts=[]), update

    def prefetch(self, assignments: Any) -> None:
        self.handed_out.append(keys(assignments))

    def fault_counts(self, collected: Any) -> FaultCounts:
        return FaultCounts(1, 1, 0, 0, 1, 0, 0, 0, 0)


class HandedOut(Observer):
    """Record how many meta-batches had been handed out when an iteration was reported."""

    def __init__(self, actors: FakeActorSystem, seen: list[int]) -> None:
        self._actors, self._seen = actors, seen

    def on_iteration(self, record: IterationRecord) -> None:
        self._seen.append(len(self._actors.handed_out))


def keys(assignments: list[Assignment]) -> set[tuple[int, int]]:
    """Return the iterations and versions of assignments."""
    return {(one.iteration, one.version) for one in assignments}


@dataclass
class Run:
    """A loop that is ready to run."""

    loop: _TrainingLoop
    gate: Gate
    stop: StopRequest
    folder: RunDir
    actors: FakeActorSystem


@contextmanager
def prepared_run(
    path: Path, during: Callable[[int], object] = lambda iteration: None, **sections: Any
) -> Iterator[Run]:
    """Prepare three iterations in a directory where another attempt can start."""
    sections = {"run": {"iterations": 3}, **sections}
    run_settings = settings(faults={"fallback_directory": str(path / "fallback")}, **sections)
    folder, stop = RunDir(path / "run"), StopRequest()
    gate = Gate(folder.path)
    storage = FencedStorage(gate, open_session(folder, run_settings).lease)
    with open_checkpoint_writer(run_settings, folder, storage, stop.supersede) as writer:
        actors = FakeActorSystem(run_settings, during)
        tasks: Any = SimpleNamespace(sample=lambda rng, count: (Task("any"),) * count)
        audience = ObserverList([])
        yield Run(
            _TrainingLoop(
                run_settings,
                tasks,
                cast(ActorSystem, actors),
                writer,
                audience,
                stop.check,
                1,
                _Progress(),
            ),
            gate,
            stop,
            folder,
            actors,
        )
        gate.open.set()


def test_a_run_ends_with_its_last_checkpoint_safe(tmp_path: Path) -> None:
    with prepared_run(tmp_path) as run:
        run.loop.run()
    assert load_newest_checkpoint(LocalStorage(run.folder.path))[0].iteration == 3


@pytest.mark.timeout(90)  # of a run that ignores the signal
def test_a_signal_interrupts_the_wait_for_the_last_checkpoint(tmp_path: Path) -> None:
    """The storage is so slow that the run would wait for minutes."""

    def during(iteration: int) -> None:
        if iteration == 2:
            run.loop.writer.flush(WAIT_S)
            run.gate.open.clear()
            run.stop._signal = 15  # what the handler does

    with prepared_run(tmp_path, during) as run:
        checked = threading.Event()

        def check() -> None:
            checked.set()
            run.gate.open.set()  # then it is fast again
            run.stop.check()

        run.loop.check_stop = check
        with pytest.raises(Interrupted):
            run.loop.run()
        assert checked.is_set()
    assert load_newest_checkpoint(LocalStorage(run.folder.path))[0].iteration == 3


def test_a_run_stopped_by_its_storage_is_saved_to_the_fallback_once(tmp_path: Path) -> None:
    with prepared_run(tmp_path) as run:
        run.gate.full = True
        patient = run.loop.settings.cluster.model_copy(update={"task_timeout_s": 0.5})
        run.loop.settings = run.loop.settings.model_copy(update={"cluster": patient})
        with pytest.raises(
            TrainingFailed, match=r"within 0 s .*No space left .*fallback/run$"
        ) as raised:
            run.loop.run()
    assert raised.value.run == str(tmp_path / "fallback" / "run")  # to resume from
    assert [path.name for path in (tmp_path / "fallback").iterdir()] == ["run"]
    assert load_newest_checkpoint(LocalStorage(tmp_path / "fallback" / "run"))[0].iteration == 3


def test_an_error_keeps_its_exit_code_if_the_storage_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.runs.training_loop.EXIT_SAVE_TIMEOUT_S", 0.3)

    def during(iteration: int) -> None:
        if iteration == 2:
            run.gate.full = True
            raise UserCodeFailed("the reward is NaN")

    with prepared_run(tmp_path, during) as run, pytest.raises(UserCodeFailed) as raised:
        run.loop.run()
    assert str(raised.value).startswith("the reward is NaN; ")
    assert raised.value.run == str(tmp_path / "fallback" / "run")


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_newer_attempt_ends_it_without_a_last_checkpoint(tmp_path: Path, when: int) -> None:
    def during(iteration: int) -> None:
        if iteration == when:
            run.loop.writer.flush(WAIT_S)
            acquire_lease(LocalStorage(run.folder.path))

    with (
        prepared_run(tmp_path, during) as run,
        pytest.raises(Superseded, match="attempt 2 of this run"),
    ):
        run.loop.run()
    kept = [name for name in LocalStorage(run.folder.path).names("checkpoints") if name.isdigit()]
    assert [int(name) for name in kept][-1:] == [when][: when > 0]
    assert not (tmp_path / "fallback").exists()
    with pytest.raises(Superseded):  # ends a wait for actors too
        run.stop.check()


def test_without_async_collection_the_next_meta_batch_waits_for_the_update_alone(
    tmp_path: Path,
) -> None:
    """It is handed out with the new version before observers write what was learned."""
    seen: list[int] = []
    with prepared_run(tmp_path) as run:
        run.loop.observers.add(HandedOut(run.actors, seen))
        run.loop.run()
    assert run.actors.asked == [({(i, i)}, set()) for i in range(3)]
    assert run.actors.handed_out == [{(1, 1)}, {(2, 2)}, set()]
    assert seen == [1, 2, 3]


def test_async_collection_prefetches_with_the_version_before_the_update(
    tmp_path: Path,
) -> None:
    with prepared_run(tmp_path, meta_batch={"async_collection": True}) as run:
        run.loop.run()
    assert run.actors.asked == [({(0, 0)}, {(1, 0)}), ({(1, 0)}, {(2, 1)}), ({(2, 1)}, set())]
    assert run.actors.handed_out == [set()]  # after the last, nothing


def test_async_collection_scores_the_version_that_collected(tmp_path: Path) -> None:
    """Iteration 3 scores version 2, so its checkpoint is kept although keep_checkpoints is 1."""

    def during(iteration: int) -> None:
        run.loop.writer.flush(WAIT_S)  # no checkpoint is skipped

    run_settings = {
        "meta_batch": {"async_collection": True},
        "run": {"iterations": 4, "keep_checkpoints": 1},
    }
    with prepared_run(tmp_path, during, **run_settings) as run:
        run.loop.run()
    assert read_best_score(LocalStorage(run.folder.path)) == CheckpointScore(
        2, 36.0
    )  # made up: 12 an iteration


@pytest.mark.parametrize(("scale", "warned"), [(1.0, True), (0.1, False)])
def test_it_warns_before_ray_starts_if_most_actions_are_beyond_their_bounds(
    scale: float, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RayStarts(Exception):
        pass

    def start(*_: Any, **__: Any) -> Any:
        raise RayStarts

    class Events(Observer):
        said: ClassVar[list[str]] = []

        def on_event(self, message: str) -> None:
            self.said.append(message)

    monkeypatch.setattr(training_loop, "connected", start)
    chosen = settings(policy={"action_scale": scale})  # of a point that moves 0.1 at most
    with pytest.raises(RayStarts):
        training_loop.train_on_ray(chosen, RunDir(tmp_path / "run"), observers=[Events()])
    found = [each for each in Events.said if "policy.action_bounds=rescale" in each]
    assert len(found) == warned
    assert all(each.startswith("warning: 92% of what the untrained policy") for each in found)
