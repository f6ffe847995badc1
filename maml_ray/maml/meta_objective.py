"""Define the outer objective: the learner's loss, a function of the parameters before adaptation.

For each task, the inner steps are taken from these parameters and differentiated through, and the
adapted policy is evaluated on query data. All tasks go through one vectorized call. Axes: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.config.sections import InnerSettings, OuterSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.adaptation import adapt_to_task
from maml_ray.maml.distributions import (
    ActionDistribution,
    Parameters,
    distribution,
    entropy,
    kl_divergence,
)
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import e_maml_loss, outer_loss, outer_objective
from maml_ray.maml.policy_losses import sample_log_probs
from maml_ray.policies.spec import PolicySpec


@dataclass(frozen=True)
class MetaObjective:
    """The function that an update minimizes.

    Attributes:
        inner: settings of the adaptation.
        outer: settings of the loss after adaptation.
        spec: the policy's sizes.
        order: of the meta-gradient: ``second`` differentiates through the inner steps' gradients,
            ``first`` takes these as constants.
    """

    inner: InnerSettings
    outer: OuterSettings
    spec: PolicySpec
    order: Order


class MetaBatch(NamedTuple):
    """A meta-batch on the learner's device; every tensor has a leading axis of N tasks.

    Attributes:
        support: samples of each inner step; none if the steps are a context's.
        support_behavior: the behavior policies' action distributions at the support samples of
            each inner step.
        query: samples collected after the last inner step.
        query_behavior: the behavior policies' (adapted ones) action distributions at the query
            samples.
        task_advantage: (N,) mean return of the query data, standardized over tasks; for E-MAML.
        context_gradient: (N, C) mean over inner steps of the gradients that the context follows; C
            is 0 without a context.
    """

    support: tuple[Samples[Tensor], ...]
    support_behavior: tuple[ActionDistribution, ...]
    query: Samples[Tensor]
    query_behavior: ActionDistribution
    task_advantage: Tensor
    context_gradient: Tensor


class Diagnostics(NamedTuple):
    """Statistics of a meta-loss, averaged over tasks.

    Attributes:
        inner_kl: KL(behavior || current policy) on support data, in nats; mean over inner steps; 0
            if there are no support samples.
        query_kl: KL(behavior || current adapted policy) on query data, in nats.
        clip_fraction: share of query steps whose ratio lies outside ``1 +- outer.clip``.
        max_ratio_error: largest ``|ratio - 1|`` on query data; the maximum over tasks.
        entropy: of the adapted policies at query data, in nats.
    """

    inner_kl: Tensor
    query_kl: Tensor
    clip_fraction: Tensor
    max_ratio_error: Tensor
    entropy: Tensor


def meta_loss(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """Return the mean over tasks of the loss after adaptation, and its diagnostics.

    Differentiable in ``parameters``, through the inner steps' gradients in second order.
    """
    losses, diagnostics = torch.func.vmap(lambda task: task_loss(objective, parameters, task))(
        batch
    )
    return losses.mean(), mean_diagnostics(diagnostics)


def mean_diagnostics(diagnostics: Diagnostics) -> Diagnostics:
    """Average diagnostics over tasks, the leading axis; take the maximum of the ratio error."""
    means = Diagnostics(*(field.mean() for field in diagnostics))
    return means._replace(max_ratio_error=diagnostics.max_ratio_error.max())


def adapted_query_policy(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> ActionDistribution:
    """Adapt to one task, and return the adapted policy's action distribution at its query samples.

    ``batch`` has no task axis.
    """
    adapted, _ = _adapt(objective, parameters, batch)
    return distribution(objective.spec, adapted, batch.query.observations)


def task_loss(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """Return the outer loss of one task, and its diagnostics; ``batch`` has no task axis."""
    outer = objective.outer
    adapted, support_policies = _adapt(objective, parameters, batch)
    query_policy = distribution(objective.spec, adapted, batch.query.observations)
    log_probs = sample_log_probs(query_policy, batch.query)
    inner_kl = mean_inner_kl(support_policies, batch)
    loss = outer_loss(outer, log_probs, batch.query)
    if outer_objective(outer.objective).penalizes_inner_kl:
        loss = loss + outer.inner_kl_coefficient * inner_kl
    if outer.e_maml_coefficient > 0.0:
        for policy, samples in zip(support_policies, batch.support, strict=True):
            term = e_maml_loss(sample_log_probs(policy, samples), samples, batch.task_advantage)
            loss = loss + outer.e_maml_coefficient * term
    if outer_objective(outer.objective).toward_adapted:
        loss = _with_gradient_from(adapted, parameters, loss)
    clip_fraction, max_ratio_error = ratio_stats(log_probs.detach(), batch.query, outer.clip)
    return loss, Diagnostics(
        inner_kl=inner_kl.detach(),
        query_kl=_mean_kl(batch.query_behavior, query_policy, batch.query).detach(),
        clip_fraction=clip_fraction,
        max_ratio_error=max_ratio_error,
        entropy=mean_entropy(query_policy, batch.query).detach(),
    )


def _adapt(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Parameters, tuple[ActionDistribution, ...]]:
    inner, spec, order = objective.inner, objective.spec, objective.order
    gradient = batch.context_gradient
    return adapt_to_task(inner, spec, parameters, batch.support, gradient, order=order)


def _with_gradient_from(adapted: Parameters, parameters: Parameters, loss: Tensor) -> Tensor:
    """Return a number equal to ``loss`` whose gradient is ``parameters - adapted``."""
    products = [
        ((value - adapted[name]).detach() * (value - value.detach())).sum()
        for name, value in parameters.items()
    ]
    return loss.detach() + torch.stack(products).sum()


def mean_inner_kl(policies: Sequence[ActionDistribution], batch: MetaBatch) -> Tensor:
    """Return the mean over inner steps of KL(behavior || policy), (); 0 without support samples."""
    if not policies:
        return torch.zeros_like(batch.task_advantage)
    behavior = zip(batch.support_behavior, policies, batch.support, strict=True)
    return torch.stack([_mean_kl(old, new, samples) for old, new, samples in behavior]).mean(dim=0)


def ratio_stats(log_probs: Tensor, samples: Samples[Tensor], clip: float) -> tuple[Tensor, Tensor]:
    """Compare log-probabilities (..., K, T) with the behavior policies'.

    Returns:
        The share of steps (...) with a ratio outside ``1 +- clip``, and the largest
        ``|ratio - 1|`` (...), which is NaN if any ratio is.
    """
    error = (torch.exp(log_probs - samples.log_probs) - 1.0).abs()
    fraction = ((error > clip) * samples.weights).sum((-2, -1))
    return fraction, torch.where(samples.weights > 0.0, error, 0.0).amax((-2, -1))


def mean_entropy(policy: ActionDistribution, samples: Samples[Tensor]) -> Tensor:
    """Return the mean entropy of one task's policy at its samples, (), in nats."""
    return (entropy(policy) * samples.weights.flatten()).sum()


def behavior_ratio_error(batch: MetaBatch) -> Tensor:
    """Return the largest ``|ratio - 1|`` () of the recomputed behavior policies on query data."""
    log_probs = torch.func.vmap(sample_log_probs)(batch.query_behavior, batch.query)
    return ratio_stats(log_probs, batch.query, 0.0)[1].max()


def _mean_kl(old: ActionDistribution, new: ActionDistribution, samples: Samples[Tensor]) -> Tensor:
    return (kl_divergence(old, new) * samples.weights.flatten()).sum()
