"""The meta-gradient by hand, for Gaussian perceptrons: the learner's arithmetic without autograd.

Autograd through :func:`~maml_ray.maml.meta_objective.meta_loss` is general, and spends most of its
time on the way between many small operations. For the case that is trained most it pays to write
the derivative down: here the outer objective, in :mod:`~maml_ray.backends.analytic_adaptation` the
inner loop.
What is computed is what autograd computes; tests hold the two against each other in float64.

Axes: N tasks, S samples of a task, A action size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maml_ray.backends.analytic_adaptation import (
    Adaptation,
    InnerStep,
    Slopes,
    adaptation,
    pull_back,
    push_forward,
    slopes_of,
)
from maml_ray.config.settings import OuterSettings, Settings
from maml_ray.maml.distributions import ActionDistribution, Gaussian, Parameters
from maml_ray.maml.losses import Samples
from maml_ray.maml.meta_objective import (
    Diagnostics,
    MetaBatch,
    MetaObjective,
    averaged,
    diagnose,
    inner_kl_of,
)
from maml_ray.policies.spec import PolicySpec


@torch.no_grad()
def analytic_meta_gradient(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics, Parameters]:
    """The meta-loss (), what it tells, and its gradient, averaged over tasks.

    What :func:`~maml_ray.maml.meta_objective.meta_loss` and its derivative are, to rounding.
    """
    outer, tasks = objective.settings.outer, len(batch.credit)
    batch = _with_axis_of_steps(batch)
    adapted = _adapted(objective, parameters, batch)
    loss, told, slope = _judged(objective.settings, adapted, batch)
    steps = adapted.steps
    beside: list[Slopes | None] = [None] * len(steps)
    if outer.objective == "ppo" and steps:
        weight = outer.inner_kl_coefficient / len(steps)
        beside = [_kl_slopes(*pair, weight) for pair in zip(steps, batch.collectors, strict=True)]
    gradient = pull_back(adapted, slopes_of(adapted.query, slope), beside, order=objective.order)
    mean = {name: gradient[name] / tasks for name in parameters}
    return loss, told, mean


@torch.no_grad()
def analytic_meta_loss(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics]:
    """The meta-loss () and what it tells, averaged over tasks; the order changes neither."""
    batch = _with_axis_of_steps(batch)
    return _judged(objective.settings, _adapted(objective, parameters, batch), batch)[:2]


@torch.no_grad()
def analytic_fisher(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> Callable[[Parameters], Parameters]:
    """The Hessian of the adapted policies' mean KL, at KL zero, as a product with a direction.

    ``J^T F J``: the direction is pushed forward through the inner steps to the adapted policies'
    outputs at the query data, multiplied by their Fisher matrix, and pulled back.
    """
    order, adapted = objective.order, _adapted(objective, parameters, batch)
    nothing = [None] * len(adapted.steps)
    weights = batch.query.weights.flatten(start_dim=1) / len(batch.credit)

    @torch.no_grad()
    def product(direction: Parameters) -> Parameters:
        moved = push_forward(adapted, direction, order=order)
        slopes = Slopes(
            mean=weights[..., None] * adapted.query.precision.square() * moved.mean,
            log_std=2.0 * weights.sum(dim=1, keepdim=True) * moved.log_std,
        )
        gradient = pull_back(adapted, slopes, nothing, order=order)
        return {name: gradient[name] for name in direction}

    return product


@torch.no_grad()
def collecting_policies(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: tuple[Samples, ...],
    query: Samples,
) -> tuple[tuple[Gaussian, ...], Gaussian]:
    """The policies of each inner step at its support data, and the adapted one at the query data.

    Means (N, S, A) and log standard deviations (N, A).
    """
    adapted = adaptation(spec, settings.inner, parameters, support, query)
    policies = [*(step.policy for step in adapted.steps), adapted.query]
    tasks = len(query.weights)
    found = [
        Gaussian(one.mean, one.log_std[:, 0].expand(tasks, -1))
        for one in (policy.distribution for policy in policies)
    ]
    return tuple(found[:-1]), found[-1]


def _adapted(objective: MetaObjective, parameters: Parameters, batch: MetaBatch) -> Adaptation:
    inner = objective.settings.inner
    return adaptation(objective.spec, inner, parameters, batch.support, batch.query)


def _judged(
    settings: Settings, adapted: Adaptation, batch: MetaBatch
) -> tuple[Tensor, Diagnostics, Tensor]:
    """The mean loss, what there is to tell, and each loss's slope by its log-probabilities."""
    outer, query = settings.outer, adapted.query
    losses, slope = _outer_loss(outer, query.log_probs, batch.query)
    inner_kl = inner_kl_of([step.policy.distribution for step in adapted.steps], batch)
    told = diagnose(settings, inner_kl, query.log_probs, query.distribution, batch)
    if outer.objective == "ppo" and adapted.steps:
        losses = losses + outer.inner_kl_coefficient * inner_kl
    return losses.mean(), averaged(told), slope


def _outer_loss(outer: OuterSettings, log_probs: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Each task's loss on query data (N,), and its slope by each log-probability (N, S)."""
    gain = samples.advantages * samples.weights
    if outer.objective == "reinforce":
        value, slope = gain * log_probs, gain
    else:
        ratio = torch.exp(log_probs - samples.log_probs)
        value = slope = gain * ratio
    if outer.objective == "ppo":
        clipped = gain * ratio.clamp(1.0 - outer.clip, 1.0 + outer.clip)
        slope = torch.where(value <= clipped, value, 0.0)
        value = torch.minimum(value, clipped)
    return -value.sum(dim=(1, 2)), -slope.flatten(start_dim=1)


def _kl_slopes(step: InnerStep, collector: ActionDistribution, weight: float) -> Slopes:
    """Slopes of ``weight`` times the mean KL(collector || policy) on support data."""
    old, new = collector, step.policy.distribution
    assert isinstance(old, Gaussian)  # a discrete policy is not covered
    each = weight * step.samples.weights.flatten(start_dim=1)[..., None]
    precision = torch.exp(-2.0 * new.log_std)
    apart = (new.mean - old.mean) * precision
    spread = torch.exp(2.0 * old.log_std) * precision
    excess = 1.0 - spread - (new.mean - old.mean) * apart
    return Slopes(mean=each * apart, log_std=(each * excess).sum(dim=1))


def _with_axis_of_steps(batch: MetaBatch) -> MetaBatch:
    """The collectors' log standard deviations (N, 1, A), to go with means (N, S, A)."""

    def widened(policy: ActionDistribution) -> ActionDistribution:
        assert isinstance(policy, Gaussian)  # a discrete policy is not covered
        return Gaussian(policy.mean, policy.log_std[:, None])

    return batch._replace(
        collectors=tuple(widened(collector) for collector in batch.collectors),
        query_collector=widened(batch.query_collector),
    )
