"""The outer objective: what the learner minimises, a function of the parameters before adaptation.

For each task the inner steps are taken from the parameters and differentiated through, and the
adapted policy is judged on query data; all tasks go through one vectorised call. Axes: N tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.adaptation import adapt
from maml_ray.config import Settings
from maml_ray.objectives import Samples, clipped_loss, inner_losses, policy_gradient_loss
from maml_ray.policy import (
    Gaussian,
    Parameters,
    PolicySpec,
    distribution,
    kl_divergence,
    log_prob,
)


class MetaBatch(NamedTuple):
    """A meta-batch on the learner's device; every tensor has a leading axis of N tasks.

    Attributes:
        support: samples of each inner step.
        collectors: the action distributions, at each inner step's support observations, of the
            policies that collected them.
        query: samples collected after the last inner step.
    """

    support: tuple[Samples, ...]
    collectors: tuple[Gaussian, ...]
    query: Samples


class Diagnostics(NamedTuple):
    """What a meta-loss tells beside its value, averaged over tasks."""

    inner_kl: Tensor
    query_kl: Tensor
    clip_fraction: Tensor
    largest_ratio_error: Tensor


def meta_loss(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """The outer objective at ``parameters``: mean over tasks of the loss after adaptation.

    Differentiable in ``parameters``, through the inner steps when ``outer.order`` is second.
    """
    per_task = torch.func.vmap(
        lambda task_batch: _task_loss(settings, spec, parameters, task_batch), in_dims=0
    )
    losses, diagnostics = per_task(batch)
    averaged = Diagnostics(
        inner_kl=diagnostics.inner_kl.mean(),
        query_kl=diagnostics.query_kl.mean(),
        clip_fraction=diagnostics.clip_fraction.mean(),
        largest_ratio_error=diagnostics.largest_ratio_error.max(),
    )
    return losses.mean(), averaged


def _task_loss(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """The outer objective of one task, without the task axis."""
    inner, outer = settings.inner, settings.outer
    steps = inner_losses(spec, inner, batch.support)
    adapted, gaussians = adapt(parameters, steps, inner.learning_rate, order=outer.order)
    query_gaussian = distribution(spec, adapted, batch.query.observations)
    log_probs = log_prob(query_gaussian, batch.query.actions)
    if outer.objective == "ppo":
        loss = clipped_loss(log_probs, batch.query, outer.clip)
    else:
        loss = policy_gradient_loss("log_prob", log_probs, batch.query)
    inner_kl = torch.stack(
        [
            (kl_divergence(old, new) * samples.weights).sum()
            for old, new, samples in zip(batch.collectors, gaussians, batch.support, strict=True)
        ]
    ).mean()
    if outer.objective == "ppo":
        loss = loss + outer.inner_kl_coefficient * inner_kl
    return loss, _diagnose(settings, inner_kl, log_probs, batch.query)


def _diagnose(
    settings: Settings, inner_kl: Tensor, log_probs: Tensor, query: Samples
) -> Diagnostics:
    log_ratio = (log_probs - query.log_probs).detach()
    error = torch.exp(log_ratio) - 1.0
    taken = query.weights > 0.0
    return Diagnostics(
        inner_kl=inner_kl.detach(),
        # Schulman's low-variance estimator of KL(old || new) from samples of old.
        query_kl=((error - log_ratio) * query.weights).sum(),
        clip_fraction=((error.abs() > settings.outer.clip) * query.weights).sum(),
        largest_ratio_error=torch.where(taken, error.abs(), 0.0).max(),
    )
