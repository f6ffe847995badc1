"""The processes of a run: shells around the worker and the learner, a few lines a method."""

from __future__ import annotations

import os
import platform
from typing import Any

import ray

from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker
from maml_ray.learning.state import LearnerState, UpdateMetrics
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime.heartbeat import Activity, ActivityLog, Place, Receipt


def watched(kind: type) -> Any:
    """``kind`` as a Ray actor with a second thread, which answers while the first one works."""
    remote: Any = ray.remote  # its annotations do not know of concurrency groups
    return remote(concurrency_groups={"watch": 1})(kind)


class RolloutActor:
    """Owns a batch of simulations; collects, adapts, collects."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings = name, settings
        self._activity = ActivityLog()
        self._worker = RolloutWorker(settings, on_phase=self._activity.now)

    def __repr__(self) -> str:
        # Ray's dashboard asks once, after the start: what an actor does now stands with its tasks.
        # An actor that could not start is asked as well: what it raised is told with its name.
        settings = self._settings
        return f"{self._name}: {settings.meta_batch.episodes} episodes of {settings.task.name}"

    def ready(self) -> Place:
        """Where this actor runs; answers once the simulations can be made."""
        return _place()

    @ray.method(concurrency_group="watch")
    def activity(self) -> Activity:
        """What the actor is at, told from another thread."""
        return self._activity.tell()

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, Receipt]:
        """One task's support and query trajectories, and a receipt for the driver."""
        with self._activity.at(str(assignment)):
            rollouts, timings = self._worker.roll_out(parameters, assignment)
        return rollouts, Receipt(assignment, timings, _place().node_id)


class LearnerActor:
    """Owns the meta-learner; turns a meta-batch into the next version of the parameters."""

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        device: str,
        threads: int | None,
        state: LearnerState,
    ) -> None:
        self._outer, self._where = settings.outer, "a machine that it cannot start on"
        # Here and nowhere above: the driver and the rollout actors start sooner without PyTorch,
        # and take half the memory.
        import torch

        from maml_ray.learning.devices import select_device
        from maml_ray.learning.learner import MetaLearner

        # The learner works while the actors wait. Its threads take a task each, and PyTorch's own,
        # whose number decides how it rounds, stay one.
        self._threads = threads or _usable_cpus()
        torch.set_num_threads(1)
        require_gpu = settings.cluster.learner_device == "cuda"
        chosen, remark = select_device(device, require_gpu=require_gpu)
        self._where = f"CPU, {self._threads} thread{'s' * (self._threads > 1)}{remark}"
        if chosen.type == "cuda":
            self._where = f"{torch.cuda.get_device_name(chosen)} (Ray GPU {ray.get_gpu_ids()})"
        self._activity = ActivityLog()
        self._learner = MetaLearner(settings, spec, chosen, self._threads)
        self._learner.warm_up()
        self._learner.load(state)

    def __repr__(self) -> str:
        # Ray asks a learner that could not start as well: what it raised is told with its name.
        return f"learner: {self._outer.objective}, {self._outer.order} order, on {self._where}"

    def describe(self) -> str:
        """Where the learner computes, in words."""
        return self._where

    def place(self) -> Place:
        """Where this actor runs; answers once it is up."""
        return _place()

    def take(self, *rollouts: TaskRollouts) -> None:
        """Some of what the next update will be given, to be prepared now."""
        with self._activity.at(f"rollouts of version {self._learner.version}"):
            self._learner.take(rollouts)

    def update(self, *rollouts: TaskRollouts) -> tuple[UpdateMetrics, LearnerState]:
        """One meta-update; its figures, and the state after it."""
        with self._activity.at(f"meta-update of version {self._learner.version}"):
            metrics = self._learner.update(rollouts)
            return metrics, self._learner.state()

    @ray.method(concurrency_group="watch")
    def activity(self) -> Activity:
        """What the learner is at, told from another thread."""
        return self._activity.tell()


def _place() -> Place:
    return Place(ray.get_runtime_context().get_node_id(), platform.node(), os.getpid())


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
