"""``python -m tests.benchmarks.scaling``: training with 1, 2, 4, ... 64 rollout actors.

Everything is real but the physics, which sleeps (:mod:`tests.benchmarks.sleeping`): driver, pool,
learner, object store and checkpoints. One task an actor, so that an iteration takes the same time
of physics whatever their number is.

A process of Ray takes 0.6% of a core while it is idle, and with PyTorch 280 MB: 64 of them keep two
cores busy with themselves. So several actors share a process, as threads, which mostly sleep: the
driver has a queue, a call and a receipt for each all the same. ``--share 1`` gives every actor a
process of its own. They are started once; each run adds those that it lacks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from cProfile import Profile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray

from maml_ray.config import Settings, validate_settings
from maml_ray.distributed.activity import Place, Receipt
from maml_ray.distributed.actors import RolloutActor
from maml_ray.distributed.crew import Crew
from maml_ray.distributed.learner_client import LearnerClient
from maml_ray.distributed.members import Member, Recruiter
from maml_ray.distributed.pool import RolloutPool
from maml_ray.distributed.roster import Roster
from maml_ray.policy import PolicyParameters
from maml_ray.records import IterationRecord, StartReport
from maml_ray.rollout import Assignment
from maml_ray.run_folder import RunFolder
from maml_ray.training import train
from maml_ray.trajectories import TaskRollouts
from tests.benchmarks import scaling_model
from tests.benchmarks.scaling_model import Assumed, Parts
from tests.benchmarks.scaling_parts import measure_learner, parts_of
from tests.benchmarks.sleeping import EPISODES, HIDDEN, PHASES, STEPS

PHASE_S = 0.25
"""Of support, and of query: half a second an iteration."""
WARM_UP = 3
MOST = 64
SHARE = 8
FORECAST = (64, 256, 1000, 4000)


@dataclass(frozen=True)
class CpuSeconds:
    """CPU time of an iteration by process, on all cores together.

    Attributes:
        driver: of the program that trains, Ray's threads in it included.
        actors: of all rollout actors.
        learner: of the learner.
        ray: of Ray's own processes on this node, the object store among them.
    """

    driver: float
    actors: float
    learner: float
    ray: float

    @property
    def total(self) -> float:
        """Of all of them."""
        return self.driver + self.actors + self.learner + self.ray


@dataclass(frozen=True)
class ScalingResult:
    """One number of actors: medians over iterations, in seconds, and bytes of one iteration.

    Attributes:
        actors: rollout actors, and tasks.
        wall_s: of an iteration.
        physics_s: what the physics takes of it, slept.
        collect_s: the actors' mean: physics, policy and storage.
        adapt_s: the actors' mean of the inner step.
        learn_s: the learner's arithmetic.
        collected_s: from the first piece of work handed out to the last receipt.
        updated_s: from the rollouts' references to the learner's new state.
        driver_busy_s: CPU time of the driver's own thread.
        driver_queued_s: it could have worked and had no core; 0 where the system does not tell.
        cpu: by process.
        rollout_bytes: put into the object store by the actors, and fetched by the learner.
        version_bytes: of one version of the parameters, put once, fetched once by each node.
        state_bytes: of the learner's state, sent to the driver.
    """

    actors: int
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
        return self.wall_s - self.physics_s - self.learn_s

    @property
    def orchestration_share(self) -> float:
        """Of an iteration without its learning."""
        return self.orchestration_s / (self.wall_s - self.learn_s)


def settings_for(actors: int, iterations: int) -> Settings:
    """One task an actor; the learner goes through the meta-batch once, all tasks together."""
    return validate_settings(
        {
            "run": {"name": f"scaling-{actors}", "iterations": iterations},
            "task": {
                "name": "tests.benchmarks.sleeping:SleepingTasks",
                "options": {"phase_s": PHASE_S},
                "horizon": STEPS,
            },
            "policy": {"hidden_sizes": [HIDDEN], "normalise_observations": False},
            "advantages": {"baseline": "zero"},
            "meta_batch": {"tasks": actors, "episodes": EPISODES},
            "outer": {"epochs": 1, "tasks_per_minibatch": None, "diagnose_every": None},
            "cluster": {"rollout_actors": actors, "min_rollout_actors": actors},
        }
    )


class _Watch:
    """An observer, and wrappers around the steps of the driver, that note times."""

    def __init__(self, iterations: int, profile: Profile | None) -> None:
        self._last, self._profile = iterations - 1, profile
        self.records: list[IterationRecord] = []
        self.times: dict[str, list[float]] = {"collect": [], "update": [], "busy": [], "queued": []}
        self.sizes = (0, 0, 0)
        self._busy_at = self._queued_at = 0.0
        self._cpu_at: CpuSeconds | None = None
        self.cpu: CpuSeconds | None = None

    def on_start(self, report: StartReport) -> None:
        pass

    def on_iteration(self, record: IterationRecord) -> None:
        if record.iteration == self._last:
            if self._profile is not None:
                self._profile.disable()
            assert self._cpu_at is not None
            self.cpu = _per_iteration(self._cpu_at, cpu_seconds(), self._last + 1 - WARM_UP)
        self.records.append(record)
        self.times["busy"].append(time.thread_time() - self._busy_at)
        self.times["queued"].append(_queued_s() - self._queued_at)
        if record.iteration == WARM_UP - 1:
            self._cpu_at = cpu_seconds()
            if self._profile is not None:
                self._profile.enable()
        self._busy_at, self._queued_at = time.thread_time(), _queued_s()

    def on_event(self, message: str) -> None:
        print(message)

    def close(self) -> None:
        pass

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **keywords)
            self.times[name].append(time.perf_counter() - began)
            return result

        return call

    def sized(self, learn: Callable[..., Any]) -> Callable[..., Any]:
        def call(crew: Crew, *args: Any) -> Any:
            collected, update = learn(crew, *args)
            if not self.sizes[0]:  # in the first iteration, which is not counted
                rollouts = [one.rollouts for one in collected.rollouts]
                state = len(pickle.dumps(crew.learner.state, 5))
                self.sizes = (_size(rollouts), _size([crew.parameters]), state)
            return collected, update

        return call

    def median(self, name: str) -> float:
        return float(np.median(self.times[name][WARM_UP:]))


def _queued_s() -> float:
    """How long this thread has waited for a core, so far."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
    except (OSError, IndexError):  # not Linux, or not told
        return 0.0


def _size(refs: Sequence[Any]) -> int:
    """Bytes of what lies in the object store."""
    found = ray.experimental.get_object_locations(list(refs))
    return sum(int(found[ref]["object_size"]) for ref in refs)


_KINDS = {
    "ray::RolloutActor": "actors",
    "ray::SharedProcess": "actors",
    "ray::LearnerActor": "learner",
}


def cpu_seconds() -> CpuSeconds:
    """CPU time so far of this program and of all that it has started."""
    spent = dict.fromkeys((field.name for field in fields(CpuSeconds)), 0.0)
    spent["driver"] = time.process_time()
    for process in psutil.Process().children(recursive=True):
        try:
            title, times = " ".join(process.cmdline()[:1]), process.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        kind = next((_KINDS[key] for key in _KINDS if title.startswith(key)), "ray")
        spent[kind] += times.user + times.system
    return CpuSeconds(**spent)


def _per_iteration(before: CpuSeconds, after: CpuSeconds, iterations: int) -> CpuSeconds:
    names = [field.name for field in fields(CpuSeconds)]
    return CpuSeconds(
        **{name: (getattr(after, name) - getattr(before, name)) / iterations for name in names}
    )


class SharedProcess:
    """Several rollout actors in one process; any of them does a piece of work, to the same bits."""

    def __init__(self, name: str, settings: Settings, actors: int) -> None:
        self._idle: SimpleQueue[RolloutActor] = SimpleQueue()
        for _ in range(actors):
            self._idle.put(RolloutActor(name, settings))

    def ready(self) -> Place:
        """As an actor says."""
        with self._one() as actor:
            return actor.ready()

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, Receipt]:
        """As an actor does."""
        with self._one() as actor:
            return actor.roll_out(parameters, assignment)

    @contextmanager
    def _one(self) -> Iterator[RolloutActor]:
        actor = self._idle.get()
        try:
            yield actor
        finally:
            self._idle.put(actor)


@contextmanager
def actors_kept(share: int = SHARE) -> Iterator[None]:
    """Rollout actors outlive their run and are taken on by the next: a start takes seconds.

    Args:
        share: how many there are in a process.
    """
    kept: dict[int, Any] = {}
    recruit = Recruiter.recruit
    remote: Any = ray.remote

    def take_on(recruiter: Recruiter, members: Iterable[Member]) -> Member:
        taken = {member.number for member in members}
        number = next(place for place in range(len(taken) + 1) if place not in taken)
        process, name = number // share, f"rollout-{number}"
        if process not in kept and share == 1:
            kept[process] = recruit(recruiter, members).actor
        elif process not in kept:
            made = remote(SharedProcess).options(num_cpus=share, max_concurrency=share)
            kept[process] = made.remote(name, recruiter._settings_ref, share)
        actor = kept[process]
        return Member(name, number, actor, actor.ready.remote(), time.monotonic())

    with (
        mock.patch.object(Recruiter, "recruit", take_on),
        mock.patch.object(Roster, "close"),
    ):
        yield


def run_with(actors: int, iterations: int, profile: Profile | None = None) -> ScalingResult:
    """Train so many iterations with so many actors, on the Ray that is there."""
    total = iterations + WARM_UP
    watch = _Watch(total, profile)
    with ExitStack() as stack:
        for owner, name, wrapped in (
            (RolloutPool, "collect", watch.timed("collect", RolloutPool.collect)),
            (LearnerClient, "update", watch.timed("update", LearnerClient.update)),
            (Crew, "learn", watch.sized(Crew.learn)),
        ):
            # A plain function becomes a method again.
            stack.enter_context(mock.patch.object(owner, name, _as_method(wrapped)))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        train(settings_for(actors, total), RunFolder(Path(folder)), observers=[watch])
    assert watch.cpu is not None
    timings = [record.timings for record in watch.records[WARM_UP:]]
    means = {
        name: float(np.median([getattr(one, name) for one in timings]))
        for name in ("wall_s", "collect_s", "adapt_s", "learn_s")
    }
    return ScalingResult(
        actors=actors,
        physics_s=PHASES * PHASE_S,
        **means,
        collected_s=watch.median("collect"),
        updated_s=watch.median("update"),
        driver_busy_s=watch.median("busy"),
        driver_queued_s=watch.median("queued"),
        cpu=watch.cpu,
        rollout_bytes=watch.sizes[0],
        version_bytes=watch.sizes[1],
        state_bytes=watch.sizes[2],
    )


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **keywords: Any) -> Any:
        return function(self, *args, **keywords)

    return method


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``most``."""
    return tuple(2**power for power in range(most.bit_length()))


@contextmanager
def many_cpus(count: int) -> Iterator[None]:
    """A Ray of so many CPUs, all on this machine's cores."""
    ray.init(
        address="local",
        num_cpus=count,
        include_dashboard=False,
        object_store_memory=500_000_000,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def measure(
    most: int = MOST,
    iterations: int = 12,
    *,
    share: int = SHARE,
    profile: str | None = None,
) -> tuple[ScalingResult, ...]:
    """Every number of actors up to ``most``, the actors of each run kept for the next.

    Args:
        most: actors of the largest run.
        iterations: counted ones, of each run.
        share: actors in a process.
        profile: file for a profile of the largest run's driver, as ``pstats`` reads it.
    """
    results = []
    sizes = sizes_up_to(most)
    with many_cpus(max(sizes[-1], share)), actors_kept(share):
        for actors in sizes:
            profiler = Profile() if profile is not None and actors == sizes[-1] else None
            results.append(run_with(actors, iterations, profiler))
            if profiler is not None:
                profiler.dump_stats(str(profile))
    return tuple(results)


def describe(results: Sequence[ScalingResult]) -> str:
    """A table for people: milliseconds, and CPU milliseconds by process."""
    lines = [
        f"{PHASES * PHASE_S:.1f} s of physics an iteration, slept; one task an actor; all on "
        f"{os.cpu_count()} cores; in ms",
        "actors   wall  effic.  collect  learner  orchestration    driver  queued   "
        "CPU: driver  actors  learner  Ray    MB put  KB a version",
    ]
    for one in results:
        cpu = one.cpu
        lines.append(
            f"{one.actors:>6} {one.wall_s * 1e3:>6.0f} {one.efficiency:>7.2f} "
            f"{one.collect_s * 1e3:>8.0f} {one.learn_s * 1e3:>8.1f} "
            f"{one.orchestration_s * 1e3:>7.1f} {one.orchestration_share:>6.1%} "
            f"{one.driver_busy_s * 1e3:>9.1f} {one.driver_queued_s * 1e3:>7.1f} "
            f"{cpu.driver * 1e3:>13.0f} {cpu.actors * 1e3:>7.0f} {cpu.learner * 1e3:>8.0f} "
            f"{cpu.ray * 1e3:>4.0f} {one.rollout_bytes / 1e6:>9.2f} "
            f"{one.version_bytes / 1e3:>13.1f}"
        )
    return "\n".join(lines)


def model(results: Sequence[ScalingResult]) -> Parts:
    """The constants of the forecast: of these runs, and of a learner of the default settings."""
    most = results[-1]
    return parts_of(
        [one.actors for one in results],
        [one.driver_busy_s for one in results],
        [one.updated_s - one.learn_s for one in results],
        fixed_s=results[0].orchestration_s,
        actor_s=most.physics_s,
        bytes_each=(most.rollout_bytes / most.actors, most.version_bytes),
        learner=measure_learner(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--most", type=int, default=MOST, help="rollout actors")
    parser.add_argument("--iterations", type=int, default=12, help="of each number of actors")
    parser.add_argument("--share", type=int, default=SHARE, help="rollout actors in a process")
    parser.add_argument("--profile", help="file for a profile of the driver with the most actors")
    chosen = parser.parse_args()
    results = measure(chosen.most, chosen.iterations, share=chosen.share, profile=chosen.profile)
    parts = model(results) if len(results) > 1 else None
    if chosen.json:
        told = {
            "scaling": [asdict(one) for one in results],
            "parts": None if parts is None else asdict(parts),
        }
        print(json.dumps(told, indent=2))
        return
    print(describe(results))
    if parts is not None:
        for epochs in (4, 1):
            print(f"\n{scaling_model.describe(parts, FORECAST, Assumed(epochs=epochs))}")


if __name__ == "__main__":
    main()
