"""The inner loop of Gaussian perceptrons and its derivatives, written out: no autograd.

With inner steps ``theta_{k+1} = theta_k - rate * g_k(theta_k)``, a slope ``v`` behind the last one
is pulled back to the meta-parameters, step by step (Finn et al. 2017,
https://arxiv.org/abs/1703.03400; the chain rule), and a direction ``p`` is pushed forward:

    v  <-  v - H_k (rate * v)        dL/drate  +=  -v * g_k
    p  <-  p - rate * H_k p - drate * g_k

``H_k`` is the Hessian of the inner loss. Its product with a vector is the derivative of the
gradient along that vector (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147): one more
pass forward and back, beside the activations of the first one.

Axes: N tasks, S samples of a task, D observation size, A action size. Parameters are those of the
policy, by name; before the first inner step all tasks share them, afterwards they have an axis N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.backends.perceptron import Backward, Forward, backward, forward, push, push_backward
from maml_ray.config.settings import InnerSettings
from maml_ray.maml.distributions import Gaussian, Parameters, log_prob
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import Samples
from maml_ray.maml.meta_parameters import LOG_RATE, inner_rates, policy_part
from maml_ray.policies.spec import LOG_STD, PolicySpec

Rates = float | Mapping[str, Tensor]


class Slopes(NamedTuple):
    """Of a loss with respect to the means (N, S, A) and log standard deviations (N, A)."""

    mean: Tensor
    log_std: Tensor


@dataclass(frozen=True)
class PolicyAt:
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
class InnerStep:
    """One inner step of each task, as it was taken.

    Attributes:
        policy: before it, at the support data.
        samples: the support data.
        weight: (N, S) slope of the inner loss with respect to each log-probability.
        passed: the pass back of the inner loss.
        gradient: of the inner loss (N, ...).
    """

    policy: PolicyAt
    samples: Samples
    weight: Tensor
    passed: Backward
    gradient: Parameters


@dataclass(frozen=True)
class Adaptation:
    """Inner steps as they were taken, and where they led.

    Attributes:
        inner: the inner loop's settings.
        rates: the inner rate, one number or one of each parameter.
        steps: the inner steps.
        query: the adapted policies at the query data.
    """

    inner: InnerSettings
    rates: Rates
    steps: tuple[InnerStep, ...]
    query: PolicyAt


def adaptation(
    spec: PolicySpec,
    inner: InnerSettings,
    parameters: Parameters,
    support: Sequence[Samples],
    query: Samples,
) -> Adaptation:
    """Adapt every task's policy to its support data, and look at it at its query data."""
    theta, rates, steps = policy_part(parameters), inner_rates(inner, parameters, torch.exp), []
    for samples in support:
        steps.append(_inner_step(spec, inner, theta, samples))
        theta = {
            name: value - _rate(rates, name) * steps[-1].gradient[name]
            for name, value in theta.items()
        }
    return Adaptation(inner, rates, tuple(steps), policy_at(spec, theta, query))


def pull_back(
    adapted: Adaptation, slopes: Slopes, beside: Sequence[Slopes | None], *, order: Order
) -> Parameters:
    """The gradient by the meta-parameters of a loss, summed over tasks.

    Args:
        adapted: the inner loop.
        slopes: of the loss by the adapted policies at the query data.
        beside: of the loss by the policies of each inner step at its support data.
        order: of the first, the inner steps' own derivatives are left out.
    """
    adjoint = gradient_of(adapted.query, slopes)[1]
    of_rates = dict[str, Tensor]()
    if not isinstance(adapted.rates, float):
        of_rates = {name: torch.zeros_like(rate) for name, rate in adapted.rates.items()}
    for step, own in zip(reversed(adapted.steps), reversed(beside), strict=True):
        for name, total in of_rates.items():
            total -= (adjoint[name] * step.gradient[name]).sum(dim=0)
        adjoint = _before(adapted, step, adjoint, own, order)
    gradient = {name: value.sum(dim=0) for name, value in adjoint.items()}
    for name, total in of_rates.items():
        gradient[LOG_RATE + name] = total * _rate(adapted.rates, name)
    return gradient


def push_forward(adapted: Adaptation, direction: Parameters, *, order: Order) -> Slopes:
    """How the adapted policies at the query data change along a direction of meta-parameters."""
    change: Parameters = policy_part(direction)
    for step in adapted.steps:
        before = change
        if order == "second":
            bent = hessian_product(step, before, adapted.inner)
            change = {
                name: value - _rate(adapted.rates, name) * bent[name]
                for name, value in before.items()
            }
        if not isinstance(adapted.rates, float):
            for name, rate in adapted.rates.items():
                by_rate = direction[LOG_RATE + name] * rate * step.gradient[name]
                change = {**change, name: change[name] - by_rate}
    query = adapted.query
    pushed = push(query.network, change).output
    return Slopes(pushed, (change[LOG_STD] * query.free).expand(len(pushed), -1))


def policy_at(spec: PolicySpec, theta: Parameters, samples: Samples) -> PolicyAt:
    """Each task's policy at its samples."""
    network = forward(spec, theta, samples.observations)
    raw = theta[LOG_STD] if theta[LOG_STD].ndim == 2 else theta[LOG_STD][None]
    policy = Gaussian(network.output, raw.clamp(min=spec.min_log_std)[:, None])
    # Written out for every sample: rows of a few numbers are slow to broadcast, and many times.
    precision = torch.exp(-policy.log_std).expand_as(policy.mean).contiguous()
    return PolicyAt(
        network=network,
        distribution=policy,
        free=(raw >= spec.min_log_std).to(raw.dtype),
        precision=precision,
        noise=(samples.actions - policy.mean).mul_(precision),
        log_probs=log_prob(policy, samples.actions).reshape(samples.log_probs.shape),
    )


def slopes_of(policy: PolicyAt, weight: Tensor) -> Slopes:
    """Slopes of a loss, from its slope ``weight`` (N, S) with respect to each log-probability."""
    weight = weight[..., None]
    scaled = weight * policy.noise
    return Slopes(
        mean=scaled * policy.precision,
        log_std=(scaled * policy.noise - weight).sum(dim=1),
    )


def gradient_of(policy: PolicyAt, slopes: Slopes) -> tuple[Backward, Parameters]:
    """Through the network and the floor, to the gradient of the parameters."""
    passed = backward(policy.network, slopes.mean)
    return passed, {**passed.gradient, LOG_STD: slopes.log_std * policy.free}


def _inner_step(
    spec: PolicySpec, inner: InnerSettings, theta: Parameters, samples: Samples
) -> InnerStep:
    policy = policy_at(spec, theta, samples)
    weight = -samples.advantages * samples.weights
    if inner.objective == "ratio":
        weight = weight * torch.exp(policy.log_probs - samples.log_probs)
    weight = weight.flatten(start_dim=1)
    passed, gradient = gradient_of(policy, slopes_of(policy, weight))
    if inner.l2 > 0.0:
        gradient = {name: value + 2.0 * inner.l2 * theta[name] for name, value in gradient.items()}
    return InnerStep(policy, samples, weight, passed, gradient)


def _rate(rates: Rates, name: str) -> float | Tensor:
    return rates if isinstance(rates, float) else rates[name]


def _before(
    adapted: Adaptation,
    step: InnerStep,
    adjoint: Parameters,
    beside: Slopes | None,
    order: Order,
) -> Parameters:
    """The adjoint before ``step``, from that behind it and what else depends on its policy."""
    if order == "second":
        direction = {name: -_rate(adapted.rates, name) * value for name, value in adjoint.items()}
        change = hessian_product(step, direction, adapted.inner, beside)
    elif beside is not None:
        change = gradient_of(step.policy, beside)[1]
    else:
        return adjoint
    return {name: value + change[name] for name, value in adjoint.items()}


def hessian_product(
    step: InnerStep,
    direction: Parameters,
    inner: InnerSettings,
    beside: Slopes | None = None,
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
    slopes = Slopes(
        mean=(scaled - weight * policy.noise * wider) * policy.precision,
        log_std=(scaled * policy.noise + weight * policy.noise * noise - change).sum(dim=1),
    )
    if beside is not None:
        slopes = Slopes(slopes.mean + beside.mean, slopes.log_std + beside.log_std)
    passed = push_backward(policy.network, step.passed, pushed, slopes.mean)
    product = {**passed.gradient, LOG_STD: slopes.log_std * policy.free}
    if inner.l2 > 0.0:
        product = {
            name: value + 2.0 * inner.l2 * direction[name] for name, value in product.items()
        }
    return product
