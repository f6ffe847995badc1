"""Identify a run on its Ray cluster, and hold what all parts of its runtime share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray

from maml_ray.runtime.capacity import Capacity
from maml_ray.runtime.fault_policy import FailureReport
from maml_ray.tasks.loading import OwnTasks


@dataclass(frozen=True, order=True)
class RunId:
    """A run's name, and its Ray job id, which distinguishes runs of the same name.

    Attributes:
        run: ``run.name`` of its settings.
        job: Ray job id of its driver, as Ray's dashboard shows it.
    """

    run: str
    job: str

    def __str__(self) -> str:
        return f"{self.run}/{self.job}"

    @property
    def namespace(self) -> str:
        """Ray namespace of the run's own actors."""
        return f"maml_ray/{self}"

    @classmethod
    def parse(cls, text: str) -> RunId | None:
        """Return the id that ``str`` produced; None if ``text`` is not one."""
        run, slash, job = text.rpartition("/")
        return cls(run, job) if slash and run and job else None


def current_run_id(run: str) -> RunId:
    """Return the id of the run named ``run`` whose driver is this process."""
    return RunId(run, ray.get_runtime_context().get_job_id())


@dataclass(frozen=True)
class RunContext:
    """What the parts of a run's runtime share.

    Attributes:
        namespace: Ray namespace of the run's actors.
        capacity: number of actors that fit on the cluster, and its draining nodes.
        handle_failure: records a failure; raises TrainingFailed to end the run.
        on_event: receives messages for the user: failures that were recovered from, long waits.
        check_stop: called at least every half second while waiting; may raise to abandon the wait.
        own_tasks: tasks of the run if they were given in Python.
        on_status: receives what is waited for, again and again.
    """

    namespace: str
    capacity: Capacity
    handle_failure: Callable[[FailureReport], None]
    on_event: Callable[[str], None]
    check_stop: Callable[[], None]
    own_tasks: OwnTasks | None = None
    on_status: Callable[[str], None] = lambda message: None
