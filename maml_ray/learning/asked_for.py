"""Whether rollouts are those that an update asked for."""

from __future__ import annotations

from collections.abc import Sequence

from maml_ray.config.settings import Settings
from maml_ray.rollouts.trajectories import TaskRollouts


def checked(
    rollouts: Sequence[TaskRollouts], settings: Settings, version: int
) -> list[TaskRollouts]:
    """The rollouts in the order of their tasks.

    Args:
        rollouts: of one meta-batch.
        settings: of the run.
        version: of the parameters that were to collect them.

    Raises:
        ValueError: they are not exactly one of each task of the meta-batch, were collected with
            another version of the parameters, or lack a support set.
    """
    ordered = sorted(rollouts, key=lambda task: task.task_index)
    indices = [task.task_index for task in ordered]
    if indices != list(range(settings.meta_batch.tasks)):
        raise ValueError(
            f"an update needs tasks 0 to {settings.meta_batch.tasks - 1}, each once; got {indices}"
        )
    for task in ordered:
        check(task, settings, version)
    return ordered


def check(task: TaskRollouts, settings: Settings, version: int) -> None:
    """See that one task's rollouts are some that were asked for; raises as :func:`checked`."""
    if not 0 <= task.task_index < settings.meta_batch.tasks:
        raise ValueError(f"there is no task {task.task_index} of {settings.meta_batch.tasks}")
    if task.version != version:
        raise ValueError(
            f"task {task.task_index} was collected with version {task.version}, "
            f"the learner asked for version {version}"
        )
    if len(task.support) != settings.inner.steps:
        raise ValueError(
            f"task {task.task_index} has {len(task.support)} support sets, "
            f"inner.steps is {settings.inner.steps}"
        )
