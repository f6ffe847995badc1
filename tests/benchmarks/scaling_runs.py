"""One run of the scaling benchmark: so many actors, and where an iteration's time went."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from cProfile import Profile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.records import IterationRecord, Observer
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.training_loop import train_on_ray
from maml_ray.runtime.actor_system import ActorSystem
from maml_ray.runtime.learner_handle import LearnerHandle
from tests.benchmarks.scaling_cpu import CpuSeconds, cpu_seconds, per_iteration, queued_s
from tests.benchmarks.sleeping import EPISODES, HIDDEN, PHASES, STEPS

PHASE_S = 0.25
"""Of support, and of query: half a second an iteration."""
WARM_UP = 3


@dataclass(frozen=True)
class ScalingResult:
    """One number of actors: medians over iterations, in seconds, and bytes of one iteration.

    Attributes:
        actors: rollout actors, and tasks.
        overlap: whether the actors went on during updates: learning is then hidden, or counted.
        wall_s: of an iteration.
        physics_s: what the physics takes of it, slept.
        collect_s: the actors' mean: physics, policy and storage.
        adapt_s: the actors' mean of the inner step.
        learn_s: the learner's arithmetic.
        collected_s: from the first piece of work handed out to the last receipt, and what the
            driver does with the learner's state.
        updated_s: from the rollouts' references to the learner's new state.
        driver_busy_s: CPU time of the driver's own thread.
        driver_queued_s: it could have worked and had no core; 0 where the system does not tell.
        cpu: by process.
        rollout_bytes: put into the object store by the actors, and fetched by the learner.
        version_bytes: of one version of the parameters, put once, fetched once by each node.
        state_bytes: of the learner's state, sent to the driver.
    """

    actors: int
    overlap: bool
    wall_s: float
    physics_s: float
    collect_s: float
    adapt_s: float
    learn_s: float
    collected_s: float
    updated_s: float
    driver_busy_s: float
    driver_queued_s: float
    cpu: CpuSeconds
    rollout_bytes: int
    version_bytes: int
    state_bytes: int

    @property
    def efficiency(self) -> float:
        """Share of the wall time that is physics."""
        return self.physics_s / self.wall_s

    @property
    def orchestration_s(self) -> float:
        """Neither physics nor learning: hand-outs, transport, inner steps, actors that wait."""
        return self._aside_from_learning_s - self.physics_s

    @property
    def orchestration_share(self) -> float:
        """Of an iteration without its learning."""
        return self.orchestration_s / self._aside_from_learning_s

    @property
    def _aside_from_learning_s(self) -> float:
        return self.wall_s if self.overlap else self.wall_s - self.learn_s


def settings_for(actors: int, iterations: int, *, overlap: bool = False) -> Settings:
    """One task an actor; the learner goes through the meta-batch once, all tasks together."""
    return validate_settings(
        {
            "run": {"name": f"scaling-{actors}", "iterations": iterations},
            "task": {
                "name": "tests.benchmarks.sleeping:SleepingTasks",
                "options": {"phase_s": PHASE_S},
                "horizon": STEPS,
            },
            "policy": {"hidden_sizes": [HIDDEN], "normalize_observations": False},
            "advantages": {"baseline": "zero"},
            "meta_batch": {"tasks": actors, "episodes": EPISODES, "async_collection": overlap},
            "outer": {"epochs": 1, "tasks_per_minibatch": None, "diagnose_every": None},
            "cluster": {"rollout_actors": actors, "min_rollout_actors": actors},
        }
    )


class _Watch(Observer):
    """An observer, and wrappers around the steps of the driver, that note times."""

    def __init__(self, iterations: int, profile: Profile | None) -> None:
        self._last, self._profile = iterations - 1, profile
        self.records: list[IterationRecord] = []
        self.times: dict[str, list[float]] = {"learn": [], "update": [], "busy": [], "queued": []}
        self.sizes = (0, 0, 0)
        self._busy_at = self._queued_at = 0.0
        self._cpu_at: CpuSeconds | None = None
        self.cpu: CpuSeconds | None = None

    def on_iteration(self, record: IterationRecord) -> None:
        if record.iteration == self._last:
            if self._profile is not None:
                self._profile.disable()
            assert self._cpu_at is not None
            self.cpu = per_iteration(self._cpu_at, cpu_seconds(), self._last + 1 - WARM_UP)
        self.records.append(record)
        self.times["busy"].append(time.thread_time() - self._busy_at)
        self.times["queued"].append(queued_s() - self._queued_at)
        if record.iteration == WARM_UP - 1:
            self._cpu_at = cpu_seconds()
            if self._profile is not None:
                self._profile.enable()
        self._busy_at, self._queued_at = time.thread_time(), queued_s()

    def on_event(self, message: str) -> None:
        print(message)

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **keywords)
            self.times[name].append(time.perf_counter() - began)
            return result

        return call

    def sized(self, learn: Callable[..., Any]) -> Callable[..., Any]:
        def call(system: ActorSystem, *args: Any, **keywords: Any) -> Any:
            collected, update = learn(system, *args, **keywords)
            if not self.sizes[0]:  # in the first iteration, which is not counted
                rollouts = [one.rollouts for one in collected.rollouts]
                state = len(pickle.dumps(system.learner.state, 5))
                self.sizes = (_size(rollouts), _size([system.parameters]), state)
            return collected, update

        return call

    def median(self, name: str) -> float:
        return float(np.median(self.times[name][WARM_UP:]))


def _size(refs: Sequence[Any]) -> int:
    """Bytes of what lies in the object store."""
    found = ray.experimental.get_object_locations(list(refs))
    return sum(int(found[ref]["object_size"]) for ref in refs)


def run_with(
    actors: int, iterations: int, profile: Profile | None = None, *, overlap: bool = False
) -> ScalingResult:
    """Train so many iterations with so many actors, on the Ray that is there.

    Args:
        actors: rollout actors, and tasks.
        iterations: counted ones.
        profile: of the driver, where one is wanted.
        overlap: whether the next meta-batch is collected during an update.
    """
    total = iterations + WARM_UP
    watch = _Watch(total, profile)
    with ExitStack() as stack:
        for owner, name, wrapped in (
            (LearnerHandle, "update", watch.timed("update", LearnerHandle.update)),
            (
                ActorSystem,
                "run_iteration",
                watch.timed("learn", watch.sized(ActorSystem.run_iteration)),
            ),
        ):
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        chosen = settings_for(actors, total, overlap=overlap)
        train_on_ray(chosen, RunDir(Path(folder)), observers=[watch])
    assert watch.cpu is not None
    timings = [record.timings for record in watch.records[WARM_UP:]]
    means = {
        name: float(np.median([getattr(one, name) for one in timings]))
        for name in ("wall_s", "collect_s", "adapt_s", "learn_s")
    }
    return ScalingResult(
        actors=actors,
        overlap=overlap,
        physics_s=PHASES * PHASE_S,
        **means,
        collected_s=watch.median("learn") - watch.median("update"),
        updated_s=watch.median("update"),
        driver_busy_s=watch.median("busy"),
        driver_queued_s=watch.median("queued"),
        cpu=watch.cpu,
        rollout_bytes=watch.sizes[0],
        version_bytes=watch.sizes[1],
        state_bytes=watch.sizes[2],
    )
