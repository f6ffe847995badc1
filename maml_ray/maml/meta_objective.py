"""The outer objective: what the learner minimizes, a function of the parameters before adaptation.

For each task the inner steps are taken from the parameters and differentiated through, and the
adapted policy is judged on query data; all tasks go through one vectorized call. Axes: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import (
    ActionDistribution,
    Parameters,
    distribution,
    entropy,
    kl_divergence,
)
from maml_ray.maml.inner_loop import Order, adapt
from maml_ray.maml.losses import (
    Samples,
    clipped_loss,
    inner_losses,
    log_probs_of,
    policy_gradient_loss,
    sampling_loss,
)
from maml_ray.maml.meta_parameters import inner_rates, policy_part
from maml_ray.policies.spec import PolicySpec


@dataclass(frozen=True)
class MetaObjective:
    """What is minimized: a loss of the parameters before adaptation, on a meta-batch.

    Attributes:
        settings: of the run; ``inner`` adapts, ``outer`` judges.
        spec: the policy's sizes.
        order: of its gradient: ``second`` is all of it, ``first`` takes the inner steps as given.
    """

    settings: Settings
    spec: PolicySpec
    order: Order


class MetaBatch(NamedTuple):
    """A meta-batch on the learner's device; every tensor has a leading axis of N tasks.

    Attributes:
        support: samples of each inner step.
        collectors: the action distributions, at each inner step's support observations, of the
            policies that collected them.
        query: samples collected after the last inner step.
        query_collector: the action distributions at the query observations of the adapted
            policies that collected them.
        credit: (N,) how much better than the others a task went after adaptation, in standard
            deviations; for E-MAML's sampling term.
    """

    support: tuple[Samples, ...]
    collectors: tuple[ActionDistribution, ...]
    query: Samples
    query_collector: ActionDistribution
    credit: Tensor


class Diagnostics(NamedTuple):
    """What a meta-loss tells beside its value, averaged over tasks.

    Attributes:
        inner_kl: KL between the policies that collected support data and today's.
        query_kl: the same for the adapted policies on query data.
        clip_fraction: share of query steps whose ratio lies outside the clip range.
        largest_ratio_error: largest ``|ratio - 1|`` on query data.
        entropy: of the adapted policies at query data, in nats.
    """

    inner_kl: Tensor
    query_kl: Tensor
    clip_fraction: Tensor
    largest_ratio_error: Tensor
    entropy: Tensor


def meta_loss(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """The outer objective at ``parameters``: mean over tasks of the loss after adaptation.

    Differentiable in ``parameters``, through the inner steps when the order is second.
    """
    losses, diagnostics = torch.func.vmap(
        lambda task_batch: task_loss(objective, parameters, task_batch)
    )(batch)
    return losses.mean(), averaged(diagnostics)


def averaged(diagnostics: Diagnostics) -> Diagnostics:
    """Over tasks, the leading axis; of the largest error the largest."""
    means = Diagnostics(*(field.mean() for field in diagnostics))
    return means._replace(largest_ratio_error=diagnostics.largest_ratio_error.max())


def adapted_query_policy(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[ActionDistribution, tuple[ActionDistribution, ...]]:
    """One task's policy after adaptation, at its query data; and those of each inner step."""
    spec, inner = objective.spec, objective.settings.inner
    steps = inner_losses(spec, inner, batch.support)
    rates = inner_rates(inner, parameters, torch.exp)
    adapted, on_the_way = adapt(policy_part(parameters), steps, rates, order=objective.order)
    return distribution(spec, adapted, batch.query.observations), on_the_way


def task_loss(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """The outer objective of one task: ``batch`` is without the task axis."""
    outer = objective.settings.outer
    query_policy, support_policies = adapted_query_policy(objective, parameters, batch)
    log_probs = log_probs_of(query_policy, batch.query)
    inner_kl = inner_kl_of(support_policies, batch)
    if outer.objective == "ppo":
        loss = clipped_loss(log_probs, batch.query, outer.clip)
        loss = loss + outer.inner_kl_coefficient * inner_kl
    elif outer.objective == "trpo":
        loss = policy_gradient_loss("ratio", log_probs, batch.query)
    else:
        loss = policy_gradient_loss("log_prob", log_probs, batch.query)
    if outer.e_maml_coefficient > 0.0:
        for policy, samples in zip(support_policies, batch.support, strict=True):
            term = sampling_loss(log_probs_of(policy, samples), samples, batch.credit)
            loss = loss + outer.e_maml_coefficient * term
    return loss, diagnose(objective.settings, inner_kl, log_probs, query_policy, batch)


def inner_kl_of(policies: Sequence[ActionDistribution], batch: MetaBatch) -> Tensor:
    """Mean over inner steps of the KL from the collecting policies; zero without inner steps."""
    if not policies:
        return torch.zeros_like(batch.credit)
    return torch.stack(
        [
            _mean_kl(old, new, samples)
            for old, new, samples in zip(batch.collectors, policies, batch.support, strict=True)
        ]
    ).mean(dim=0)


def collector_ratio_error(batch: MetaBatch) -> Tensor:
    """Largest ``|ratio - 1|`` on query data of the collectors as they were computed here."""
    log_probs = torch.func.vmap(log_probs_of)(batch.query_collector, batch.query)
    error = torch.exp(log_probs - batch.query.log_probs) - 1.0
    return torch.where(batch.query.weights > 0.0, error.abs(), 0.0).max()


def _mean_kl(old: ActionDistribution, new: ActionDistribution, samples: Samples) -> Tensor:
    return (kl_divergence(old, new) * samples.weights.flatten(start_dim=-2)).sum(-1)


def diagnose(
    settings: Settings,
    inner_kl: Tensor,
    log_probs: Tensor,
    policy: ActionDistribution,
    batch: MetaBatch,
) -> Diagnostics:
    """What is to be told of one task, or of each of many: all axes but those of steps are kept.

    Args:
        settings: of the run.
        inner_kl: (...) of :func:`inner_kl_of`.
        log_probs: (..., K, T) of the query actions.
        policy: the adapted policy at the query data.
        batch: one task's, or with a leading axis of tasks.
    """
    query, steps = batch.query, (-2, -1)
    error = torch.exp((log_probs - query.log_probs).detach()) - 1.0
    taken = query.weights > 0.0
    return Diagnostics(
        inner_kl=inner_kl.detach(),
        query_kl=_mean_kl(batch.query_collector, policy, query).detach(),
        clip_fraction=((error.abs() > settings.outer.clip) * query.weights).sum(steps),
        largest_ratio_error=torch.where(taken, error.abs(), 0.0).amax(steps),
        entropy=(entropy(policy).detach() * query.weights.flatten(start_dim=-2)).sum(-1),
    )
