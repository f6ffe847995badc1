"""CPU time of a run's processes, and what its driver waited for a core."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path

import psutil


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


_KINDS = {
    "ray::RolloutActor": "actors",
    "ray::SharedProcess": "actors",
    "ray::collect": "actors",
    "ray::LearnerActor": "learner",
    "ray::prefetch": "learner",
    "ray::meta-update": "learner",
}
"""By the beginning of a process's title, which tells an actor that waits, or what it is at."""


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


def per_iteration(before: CpuSeconds, after: CpuSeconds, iterations: int) -> CpuSeconds:
    names = [field.name for field in fields(CpuSeconds)]
    return CpuSeconds(
        **{name: (getattr(after, name) - getattr(before, name)) / iterations for name in names}
    )


def queued_s() -> float:
    """How long this thread has waited for a core, so far."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
    except (OSError, IndexError):  # not Linux, or not told
        return 0.0
