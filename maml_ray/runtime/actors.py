"""Define a run's Ray actors, and what they report about where they run and what they do."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from maml_ray.common.errors import UserError
from maml_ray.config.settings import Settings
from maml_ray.envs.user_errors import user_code
from maml_ray.kernels.jit import can_cache_code, has_cached_code
from maml_ray.learning.rollout_worker import Assignment, RolloutTimings, RolloutWorker
from maml_ray.learning.state import LearnerState, UpdateMetrics
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.tasks.loading import PickledTasks

_STACK_DEPTH = 8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), from malloc.h."""


@dataclass(frozen=True)
class ActorLocation:
    """The node, host and process of an actor."""

    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host} (node {self.node_id[:8]}, pid {self.pid})"


@dataclass(frozen=True)
class RolloutInfo:
    """What the driver receives for finished work; the rollouts themselves go to the learner.

    Attributes:
        assignment: the finished work.
        timings: seconds spent in each part of it.
        node_id: node whose object store holds the rollouts.
    """

    assignment: Assignment
    timings: RolloutTimings
    node_id: str


@dataclass(frozen=True)
class Heartbeat:
    """What an actor was doing when it was asked.

    Attributes:
        work: the piece of work and its phase; None if idle.
        since_s: seconds since that phase, or idleness, began.
        stack: the innermost calls of the working thread, one line each.
    """

    work: str | None
    since_s: float
    stack: tuple[str, ...]

    def __str__(self) -> str:
        if self.work is None:
            return f"idle for {self.since_s:.0f} s"
        return "\n".join([f"{self.work}, for {self.since_s:.0f} s", *self.stack])


class HeartbeatLog:
    """Record what the working thread does, for another thread to read."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._work: str | None = None
        self._phase = ""
        self._since = time.monotonic()

    @contextmanager
    def working_on(self, work: str) -> Iterator[None]:
        """Record that this thread works on ``work`` inside the block."""
        self._thread, self._work, self._phase = threading.get_ident(), work, ""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._thread = self._work = None
            self._since = time.monotonic()

    def set_phase(self, phase: str) -> None:
        """Record that the current work has reached ``phase``."""
        self._phase = phase
        self._since = time.monotonic()

    def read(self) -> Heartbeat:
        """Return the current work and the stack of its thread."""
        thread, work, phase = self._thread, self._work, self._phase
        frame = sys._current_frames().get(thread) if thread is not None else None
        calls = traceback.extract_stack(frame)[-_STACK_DEPTH:] if frame is not None else []
        stack = tuple(f"    {call.filename}:{call.lineno} in {call.name}" for call in calls)
        description = f"{work}, {phase}" if work and phase else work
        return Heartbeat(description, time.monotonic() - self._since, stack)


def as_actor(cls: type) -> Any:
    """Return ``cls`` as a Ray actor class with a second thread that answers heartbeats."""
    remote: Any = ray.remote  # its annotations lack concurrency groups
    return remote(concurrency_groups={"watch": 1})(cls)


class RolloutActor:
    """Own a batch of simulations and roll out tasks: collect, adapt, collect."""

    def __init__(
        self, name: str, settings: Settings, own_tasks: PickledTasks | None = None
    ) -> None:
        self._name, self._settings = name, settings
        self._heartbeat = HeartbeatLog()
        if can_cache_code() and not has_cached_code():  # on a machine other than the driver's
            print("compiling kernels, once for this machine: about 30 s of one core", flush=True)
        self._failure: UserError | None = None
        try:
            # Unpickled here and not by Ray, which would kill this process if that failed.
            with user_code("unpickling the tasks"):
                tasks = None if own_tasks is None else own_tasks.load()
            self._worker = RolloutWorker(settings, tasks, self._heartbeat.set_phase)
        except UserError as error:  # raised by ready(): of __init__, Ray would print pages
            self._failure = error

    def __repr__(self) -> str:
        # Ray calls this once, after the start, for its dashboard; current work is shown with the
        # actor's tasks. It is also called if __init__ raised, to name the actor in the error.
        settings = self._settings
        return f"{self._name}: {settings.meta_batch.episodes} episodes of {settings.task.name}"

    def ready(self) -> ActorLocation:
        """Return where this actor runs, once the simulations have been created.

        Raises:
            UserError: they cannot be.
        """
        if self._failure is not None:
            raise self._failure
        return _own_location()

    @ray.method(concurrency_group="watch")
    def heartbeat(self) -> Heartbeat:
        """Return what the actor is doing, from another thread."""
        return self._heartbeat.read()

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, RolloutInfo]:
        """Return one task's support and query trajectories, and their summary for the driver."""
        with self._heartbeat.working_on(str(assignment)):
            rollouts, timings = self._worker.roll_out(parameters, assignment)
        if self._settings.inner.parameters == "context":  # only returns count: half of the bytes
            rollouts = rollouts.with_support_outcomes()
        return rollouts, RolloutInfo(assignment, timings, _own_location().node_id)


class LearnerActor:
    """Own the meta-learner and update the parameters from meta-batches."""

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        device: str,
        threads: int | None,
        state: LearnerState,
    ) -> None:
        self._outer, self._device_name = settings.outer, "a machine that it cannot start on"
        keep_freed_memory()
        gc.disable()  # imports make objects that stay: looking for garbage takes a tenth of them
        # Imported here and not above: without PyTorch the driver and the rollout actors start
        # sooner and take half the memory.
        import torch

        from maml_ray.learning.devices import select_device
        from maml_ray.learning.learner import MetaLearner

        # The learner works while the actors wait. Each of its threads takes one task. PyTorch's own
        # thread count affects rounding, so it stays 1.
        self._threads = threads or _usable_cpus()
        torch.set_num_threads(1)
        require_gpu = settings.cluster.learner_device == "cuda"
        chosen, remark = select_device(device, require_gpu=require_gpu)
        self._device_name = f"CPU, {self._threads} thread{'s' * (self._threads > 1)}{remark}"
        if chosen.type == "cuda":
            self._device_name = (
                f"{torch.cuda.get_device_name(chosen)} (Ray GPU {ray.get_gpu_ids()})"
            )
        self._heartbeat = HeartbeatLog()
        self._learner = MetaLearner(settings, spec, chosen, self._threads)
        self._learner.warm_up()
        self._learner.load(state)
        # The objects of imported libraries live on: a collection during an update need not visit
        # them, which takes longer than the update itself.
        gc.collect()
        gc.freeze()
        gc.enable()

    def __repr__(self) -> str:
        # Also called if __init__ raised, to name the actor in the error.
        outer = self._outer
        return f"learner: {outer.objective}, {outer.order} order, on {self._device_name}"

    def describe(self) -> str:
        """Return the learner's device as text."""
        return self._device_name

    def location(self) -> ActorLocation:
        """Return where this actor runs, once it is up."""
        return _own_location()

    def load(self, state: LearnerState) -> None:
        """Continue from ``state``: a standby takes over from a learner that died."""
        self._learner.load(state)

    def prefetch(self, *rollouts: TaskRollouts) -> None:
        """Prepare some rollouts of the next update in advance."""
        with self._heartbeat.working_on(f"rollouts of version {self._learner.version}"):
            self._learner.prefetch(rollouts)

    def update(self, *rollouts: TaskRollouts) -> tuple[UpdateMetrics, LearnerState]:
        """Do one meta-update; return its metrics and the state after it."""
        with self._heartbeat.working_on(f"meta-update of version {self._learner.version}"):
            metrics = self._learner.update(rollouts)
            return metrics, self._learner.state()

    @ray.method(concurrency_group="watch")
    def heartbeat(self) -> Heartbeat:
        """Return what the learner is doing, from another thread."""
        return self._heartbeat.read()


def _own_location() -> ActorLocation:
    return ActorLocation(ray.get_runtime_context().get_node_id(), platform.node(), os.getpid())


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees (mallopt(3), glibc only).

    Getting some tens of thousands of pages again in each update, zeroed by the kernel, takes up to
    a third of its time. Set here and not in the actor's environment, with which Ray could not use
    a process that it has started ahead.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
