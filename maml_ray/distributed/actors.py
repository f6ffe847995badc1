"""The processes of a run: shells around the worker and the learner, a few lines a method."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import ray
import torch

from maml_ray.adaptation import warm_up
from maml_ray.config import Settings
from maml_ray.learner import LearnerState, MetaLearner, UpdateMetrics
from maml_ray.policy import PolicyParameters, PolicySpec
from maml_ray.rollout import Assignment, RolloutTimings, RolloutWorker
from maml_ray.trajectories import TaskRollouts


@dataclass(frozen=True)
class Receipt:
    """What the driver learns of finished work; the rollouts themselves go to the learner."""

    task_index: int
    timings: RolloutTimings


class RolloutActor:
    """Owns a batch of simulations; collects, adapts, collects."""

    def __init__(self, name: str, settings: Settings) -> None:
        torch.set_num_threads(1)  # one actor a CPU
        warm_up()
        self._name = name
        self._worker = RolloutWorker(settings)

    def __repr__(self) -> str:
        # Ray's dashboard asks once, after the start: what an actor does now stands with its tasks.
        settings = self._worker.settings
        return f"{self._name}: {settings.meta_batch.episodes} episodes of {settings.task.name}"

    def ready(self) -> str:
        """The node that this actor runs on; answers once the simulations can be made."""
        return f"{platform.node()} (pid {os.getpid()})"

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, Receipt]:
        """One task's support and query trajectories, and a receipt for the driver."""
        rollouts, timings = self._worker.roll_out(parameters, assignment)
        return rollouts, Receipt(assignment.task_index, timings)


class LearnerActor:
    """Owns the meta-learner; turns a meta-batch into the next version of the parameters."""

    def __init__(
        self, settings: Settings, spec: PolicySpec, device: str, threads: int | None
    ) -> None:
        # Ray gives a process without CPUs one thread; the learner works while the actors wait.
        self._threads = threads or _usable_cpus()
        torch.set_num_threads(self._threads)
        warm_up()
        insisted = settings.cluster.learner_device == "cuda"
        self._device, self._remark = choose_device(device, insisted=insisted)
        self._learner = MetaLearner(settings, spec, self._device)

    def __repr__(self) -> str:
        outer = self._learner.settings.outer
        return f"learner: {outer.objective}, {outer.order} order, on {self.describe()}"

    def describe(self) -> str:
        """Where the learner computes, in words."""
        if self._device.type == "cuda":
            return f"{torch.cuda.get_device_name(self._device)} (Ray GPU {ray.get_gpu_ids()})"
        return f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}{self._remark}"

    def load(self, state: LearnerState) -> None:
        """Go on from a checkpointed state."""
        self._learner.load(state)

    def publish(self) -> PolicyParameters:
        """The current parameters."""
        return self._learner.publish()

    def update(self, *rollouts: TaskRollouts) -> tuple[UpdateMetrics, PolicyParameters]:
        """One meta-update; its figures, and the new parameters as an object of their own."""
        metrics = self._learner.update(rollouts)
        return metrics, self._learner.publish()

    def state(self) -> LearnerState:
        """What a checkpoint holds of the learner."""
        return self._learner.state()


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(planned: str, *, insisted: bool) -> tuple[torch.device, str]:
    """The learner's device, and a remark where it is not the planned one.

    Args:
        planned: ``"cuda"`` where Ray has given the learner a GPU, else ``"cpu"``.
        insisted: whether the settings ask for a GPU and nothing else.

    Raises:
        RuntimeError: a GPU is insisted on, and PyTorch sees none.
    """
    if planned == "cpu" or torch.cuda.is_available():
        return torch.device(planned), ""
    blind = f"Ray gives the learner a GPU, but PyTorch {torch.__version__} sees none"
    if insisted:
        raise RuntimeError(
            f"{blind}: install a CUDA build of PyTorch, or set cluster.learner_device=cpu"
        )
    return torch.device("cpu"), f" ({blind})"
