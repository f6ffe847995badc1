"""Rollouts that were asked for, the policies that collected them, and some tasks of many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maml_ray.adaptation import adapt
from maml_ray.analytic_gradient import collecting_policies, is_covered
from maml_ray.compiled_gradient import compiled_policies, goes_by_loops
from maml_ray.config import Settings
from maml_ray.meta_parameters import inner_rates, policy_part
from maml_ray.objectives import Samples, inner_losses
from maml_ray.passes import WHOLE, Passes
from maml_ray.policy import ActionDistribution, Parameters, PolicySpec, distribution
from maml_ray.tensor_trees import Tree, mapped
from maml_ray.trajectories import TaskRollouts


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


def policies_at(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: tuple[Samples, ...],
    query: Samples,
    passes: Passes = WHOLE,
) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
    """The distributions at all the data of ``parameters`` and of their adaptations.

    Of the parameters that collected the data, these are the policies that did.
    """
    if goes_by_loops(settings, spec, query.weights.device):
        return compiled_policies(settings, spec, parameters, support, query, passes)
    kind = collecting_policies if is_covered(settings, spec) else _by_adapting
    return passes.joined(lambda phases: kind(settings, spec, parameters, *phases), (support, query))


def _by_adapting(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: tuple[Samples, ...],
    query: Samples,
) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
    """The same for whatever policy and inner objective there are."""
    frozen = {name: value.detach() for name, value in parameters.items()}
    rates = inner_rates(settings.inner, frozen)

    def of_task(
        support: tuple[Samples, ...], query: Samples
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        steps = inner_losses(spec, settings.inner, support)
        adapted, on_the_way = adapt(policy_part(frozen), steps, rates, order="first")
        return on_the_way, distribution(spec, adapted, query.observations)

    with torch.no_grad():
        collectors: tuple[tuple[ActionDistribution, ...], ActionDistribution]
        collectors = torch.func.vmap(of_task)(support, query)
    return collectors


def selected(batch: Tree, indices: Tensor) -> Tree:
    """The tasks of ``indices`` (n,) alone."""
    return mapped(lambda tensor: tensor.index_select(0, indices), batch)
