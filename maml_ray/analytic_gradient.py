"""The meta-gradient by hand, for Gaussian perceptrons: the learner's inner loop without autograd.

Autograd through :func:`~maml_ray.meta_objective.meta_loss` is general, and spends most of its time
on the way between many small operations. For the case that is trained most it pays to write the
derivative down. With inner steps ``theta_{k+1} = theta_k - rate * g_k(theta_k)`` and the adjoint
``v = dL_query / dtheta_K``, going back over the steps (Finn et al. 2017,
https://arxiv.org/abs/1703.03400, appendix; the chain rule)

    dL/drate  += -v * g_k
    v         <-  v - H_k (rate * v) + coefficient * grad KL_k

where ``H_k`` is the Hessian of the inner loss. Its product with a vector is the derivative of the
gradient along that vector (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147): one more
pass forward and back, beside the activations of the first one.

What it computes is what autograd computes; tests hold the two against each other in float64.

Axes: N tasks, S samples of a task, D observation size, A action size. Parameters are those of the
policy, by name; before the first inner step all tasks share them, afterwards they have an axis N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.adaptation import Order
from maml_ray.config import InnerSettings, OuterSettings, Settings
from maml_ray.meta_objective import Diagnostics, MetaBatch, averaged, diagnose, inner_kl_of
from maml_ray.meta_parameters import LOG_RATE, inner_rates, policy_part
from maml_ray.objectives import Samples, truncated
from maml_ray.perceptron import Backward, Forward, backward, forward, push, push_backward
from maml_ray.policy import LOG_STD, ActionDistribution, Gaussian, Parameters, PolicySpec, log_prob

Rates = float | Mapping[str, Tensor]


def is_covered(settings: Settings, spec: PolicySpec) -> bool:
    """Whether this module covers these settings; autograd covers all."""
    return (
        not spec.discrete
        and settings.inner.objective in ("ratio", "log_prob")
        and settings.outer.sampling_coefficient == 0.0
    )


@torch.no_grad()
def analytic_meta_gradient(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    *,
    order: Order,
) -> tuple[Tensor, Diagnostics, Parameters]:
    """The meta-loss (), what it tells, and its gradient, averaged over tasks.

    What :func:`~maml_ray.meta_objective.meta_loss` and its derivative are, to rounding.
    """
    inner, outer = settings.inner, settings.outer
    rates, batch = inner_rates(inner, parameters), _with_axis_of_steps(batch)
    steps, theta = _adapted(spec, inner, policy_part(parameters), batch.support, rates)
    query = _policy_at(spec, theta, batch.query)
    losses, slope = _outer_loss(outer, query.log_probs, batch.query)
    inner_kl = inner_kl_of([step.policy.distribution for step in steps], batch)
    told = diagnose(settings, inner_kl, query.log_probs, query.distribution, batch)
    kl_weight = outer.inner_kl_coefficient if outer.objective == "ppo" and steps else 0.0
    losses = losses + kl_weight * inner_kl
    adjoint = _gradient(query, _slopes(query, slope))[1]
    slopes_of_rates = _no_slopes(rates)
    for step, collector in zip(reversed(steps), reversed(batch.collectors), strict=True):
        _note_rates(slopes_of_rates, adjoint, step.gradient, rates)
        beside = _kl_slopes(step, collector, kl_weight / len(steps)) if kl_weight else None
        adjoint = _before(step, adjoint, rates, inner, beside, order)
    gradient = {name: value.mean(dim=0) for name, value in adjoint.items()} | slopes_of_rates
    return losses.mean(), averaged(told), {name: gradient[name] for name in parameters}


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
    rates = inner_rates(settings.inner, parameters)
    steps, theta = _adapted(spec, settings.inner, policy_part(parameters), support, rates)
    found = [step.policy.distribution for step in steps]
    found.append(_policy_at(spec, theta, query).distribution)
    tasks = len(query.weights)
    flat = [Gaussian(one.mean, one.log_std[:, 0].expand(tasks, -1)) for one in found]
    return tuple(flat[:-1]), flat[-1]


class _Slopes(NamedTuple):
    """Of a loss with respect to the means (N, S, A) and log standard deviations (N, A)."""

    mean: Tensor
    log_std: Tensor


@dataclass(frozen=True)
class _Policy:
    """A policy of each task at some samples.

    Attributes:
        network: the pass that gave the means.
        distribution: means (N, S, A), and log standard deviations (N or 1, 1, A) on their floor or
            above it.
        free: (N or 1, A) 1 where the log standard deviation is not held by its floor.
        precision: (N, S, A) one over the standard deviations.
        noise: (N, S, A) the actions in standard deviations from the mean.
        log_probs: (N, K, T) of the actions.
    """

    network: Forward
    distribution: Gaussian
    free: Tensor
    precision: Tensor
    noise: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class _InnerStep:
    """One inner step of each task, as it was taken.

    Attributes:
        policy: before it, at the support data.
        samples: the support data.
        weight: (N, S) slope of the inner loss with respect to each log-probability.
        passed: the pass back of the inner loss.
        gradient: of the inner loss (N, ...).
    """

    policy: _Policy
    samples: Samples
    weight: Tensor
    passed: Backward
    gradient: Parameters


def _policy_at(spec: PolicySpec, theta: Parameters, samples: Samples) -> _Policy:
    network = forward(spec, theta, samples.observations)
    raw = theta[LOG_STD] if theta[LOG_STD].ndim == 2 else theta[LOG_STD][None]
    policy = Gaussian(network.output, raw.clamp(min=spec.min_log_std)[:, None])
    # Written out for every sample: rows of a few numbers are slow to broadcast, and many times.
    precision = torch.exp(-policy.log_std).expand_as(policy.mean).contiguous()
    return _Policy(
        network=network,
        distribution=policy,
        free=(raw >= spec.min_log_std).to(raw.dtype),
        precision=precision,
        noise=(samples.actions - policy.mean).mul_(precision),
        log_probs=log_prob(policy, samples.actions).reshape(samples.log_probs.shape),
    )


def _slopes(policy: _Policy, weight: Tensor) -> _Slopes:
    """Slopes of a loss, from its slope ``weight`` (N, S) with respect to each log-probability."""
    weight = weight[..., None]
    scaled = weight * policy.noise
    return _Slopes(
        mean=scaled * policy.precision,
        log_std=(scaled * policy.noise - weight).sum(dim=1),
    )


def _gradient(policy: _Policy, slopes: _Slopes) -> tuple[Backward, Parameters]:
    """Through the network and the floor, to the gradient of the parameters."""
    passed = backward(policy.network, slopes.mean)
    return passed, {**passed.gradient, LOG_STD: slopes.log_std * policy.free}


def _adapted(
    spec: PolicySpec,
    inner: InnerSettings,
    theta: Parameters,
    support: tuple[Samples, ...],
    rates: Rates,
) -> tuple[list[_InnerStep], Parameters]:
    """The inner steps from ``theta``, and where they lead."""
    steps: list[_InnerStep] = []
    for samples in support:
        steps.append(_inner_step(spec, inner, theta, samples))
        theta = {
            name: value - _rate(rates, name) * steps[-1].gradient[name]
            for name, value in theta.items()
        }
    return steps, theta


def _inner_step(
    spec: PolicySpec, inner: InnerSettings, theta: Parameters, samples: Samples
) -> _InnerStep:
    policy = _policy_at(spec, theta, samples)
    weight = -samples.advantages * samples.weights
    if inner.objective == "ratio":
        weight = weight * torch.exp(
            truncated(policy.log_probs - samples.log_probs, inner.max_ratio)
        )
    weight = weight.flatten(start_dim=1)
    passed, gradient = _gradient(policy, _slopes(policy, weight))
    if inner.l2 > 0.0:
        gradient = {name: value + 2.0 * inner.l2 * theta[name] for name, value in gradient.items()}
    return _InnerStep(policy, samples, weight, passed, gradient)


def _rate(rates: Rates, name: str) -> float | Tensor:
    return rates if isinstance(rates, float) else rates[name]


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


def _no_slopes(rates: Rates) -> Parameters:
    """Of the logarithms of learned rates; none where one number is the rate of all."""
    if isinstance(rates, float):
        return {}
    return {LOG_RATE + name: torch.zeros_like(rate) for name, rate in rates.items()}


def _note_rates(
    slopes: Parameters, adjoint: Parameters, gradient: Parameters, rates: Rates
) -> None:
    """Add one inner step's slopes of the logarithms of learned rates, averaged over tasks."""
    if isinstance(rates, float):
        return
    for name, rate in rates.items():
        slopes[LOG_RATE + name] -= rate * (adjoint[name] * gradient[name]).mean(dim=0)


def _before(
    step: _InnerStep,
    adjoint: Parameters,
    rates: Rates,
    inner: InnerSettings,
    beside: _Slopes | None,
    order: Order,
) -> Parameters:
    """The adjoint before ``step``, from that behind it and what else depends on its policy."""
    if order == "second":
        direction = {name: -_rate(rates, name) * value for name, value in adjoint.items()}
        change = _hessian_product(step, direction, inner, beside)
    elif beside is not None:
        change = _gradient(step.policy, beside)[1]
    else:
        return adjoint
    return {name: value + change[name] for name, value in adjoint.items()}


def _hessian_product(
    step: _InnerStep, direction: Parameters, inner: InnerSettings, beside: _Slopes | None
) -> Parameters:
    """The Hessian of the inner loss times ``direction``, and the gradient that ``beside`` adds.

    One pass back serves both: it is linear in the slopes that it begins with.
    """
    policy, weight = step.policy, step.weight[..., None]
    pushed = push(policy.network, direction)
    wider = (direction[LOG_STD] * policy.free)[:, None]
    noise = (pushed.output * policy.precision).add_(policy.noise * wider).neg_()
    if inner.objective == "ratio":  # its weight changes in proportion to the probability
        likelier = policy.noise * noise + wider
        change = weight * -likelier.sum(dim=-1, keepdim=True)
    else:
        change = torch.zeros_like(weight)
    scaled = change * policy.noise + weight * noise
    slopes = _Slopes(
        mean=(scaled - weight * policy.noise * wider) * policy.precision,
        log_std=(scaled * policy.noise + weight * policy.noise * noise - change).sum(dim=1),
    )
    if beside is not None:
        slopes = _Slopes(slopes.mean + beside.mean, slopes.log_std + beside.log_std)
    passed = push_backward(policy.network, step.passed, pushed, slopes.mean)
    product = {**passed.gradient, LOG_STD: slopes.log_std * policy.free}
    if inner.l2 > 0.0:
        product = {
            name: value + 2.0 * inner.l2 * direction[name] for name, value in product.items()
        }
    return product


def _kl_slopes(step: _InnerStep, collector: ActionDistribution, weight: float) -> _Slopes:
    """Slopes of ``weight`` times the mean KL(collector || policy) on support data."""
    old, new = collector, step.policy.distribution
    assert isinstance(old, Gaussian)  # a discrete policy is not covered
    each = weight * step.samples.weights.flatten(start_dim=1)[..., None]
    precision = torch.exp(-2.0 * new.log_std)
    apart = (new.mean - old.mean) * precision
    spread = torch.exp(2.0 * old.log_std) * precision
    excess = 1.0 - spread - (new.mean - old.mean) * apart
    return _Slopes(mean=each * apart, log_std=(each * excess).sum(dim=1))


def _with_axis_of_steps(batch: MetaBatch) -> MetaBatch:
    """The collectors' log standard deviations (N, 1, A), to go with means (N, S, A)."""

    def widened(policy: ActionDistribution) -> ActionDistribution:
        assert isinstance(policy, Gaussian)  # a discrete policy is not covered
        return Gaussian(policy.mean, policy.log_std[:, None])

    return batch._replace(
        collectors=tuple(widened(collector) for collector in batch.collectors),
        query_collector=widened(batch.query_collector),
    )
