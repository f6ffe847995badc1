"""Find settings of different sections that do not go together."""

from __future__ import annotations

from maml_ray.config import limits
from maml_ray.config.sections import (
    EvaluationSettings,
    InnerSettings,
    MetaBatchSettings,
    OuterSettings,
    PolicySettings,
    TaskSettings,
)


def context_problem(
    inner: InnerSettings, outer: OuterSettings, policy: PolicySettings, batch: MetaBatchSettings
) -> str | None:
    """Return why there is no place for a context vector, or no data for it, or None."""
    if inner.parameters != "context":
        return None
    if not policy.hidden_sizes:
        return "inner.parameters = context needs a hidden layer, and policy.hidden_sizes is empty"
    if inner.steps and batch.episodes < 2:
        return (
            "inner.parameters = context compares support episodes in pairs: it needs "
            "meta_batch.episodes of 2 or more"
        )
    if outer.e_maml_coefficient > 0.0:
        return (
            "inner.parameters = context has no place for E-MAML's term: "
            "outer.e_maml_coefficient = 0"
        )
    return None


def reptile_problem(inner: InnerSettings, outer: OuterSettings) -> str | None:
    """Return why there is no mean of adapted parameters to approach, or None."""
    if outer.objective != "reptile":
        return None
    if inner.steps == 0:
        return (
            "outer.objective = reptile needs inner.steps of 1 or more: it follows the inner steps"
        )
    if inner.learn_inner_rates or inner.parameters != "all":
        return (
            "outer.objective = reptile trains only what the inner steps change: it needs "
            "inner.parameters = all and inner.learn_inner_rates = false"
        )
    if outer.e_maml_coefficient > 0.0:
        return (
            "outer.objective = reptile has no place for E-MAML's term: outer.e_maml_coefficient = 0"
        )
    return None


def size_problem(
    task: TaskSettings,
    policy: PolicySettings,
    batch: MetaBatchSettings,
    inner: InnerSettings,
    evaluation: EvaluationSettings,
) -> str | None:
    """Return why valid settings jointly exceed memory, or None."""
    return (
        limits.network_problem(policy.hidden_sizes)
        or limits.iteration_problem(batch.tasks, batch.episodes, task.horizon, inner.steps + 1)
        or limits.evaluation_problem(
            evaluation.tasks,
            evaluation.episodes,
            evaluation.steps or 0,
            task.horizon,
            "evaluation.",
        )
    )
