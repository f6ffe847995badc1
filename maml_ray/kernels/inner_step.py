"""Take one inner gradient step on one task, and differentiate through it.

The derivatives of the step ``adapted = params - rates * grad L(params)`` are products with the
Hessian of the inner loss L: forward over reverse mode (Pearlmutter 1994,
https://doi.org/10.1162/neco.1994.6.1.147).

Axes: S samples, A action size, H columns of the hidden layers, Q = P + A parameters of the policy:
P of the network as :mod:`~maml_ray.kernels.layout` has them, then A log standard deviations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maml_ray.kernels import gaussian, mlp
from maml_ray.kernels.blocks import (
    BLOCK,
    block,
    hidden_scratch,
    output_scratch,
    samples_block,
)
from maml_ray.kernels.jit import jit
from maml_ray.kernels.mlp import Sizes
from maml_ray.kernels.types import Floats, Gaussian, Samples


class KernelConfig(NamedTuple):
    """What the kernels know of the settings and of the policy.

    Attributes:
        sizes: (L + 1,) of the network's layers: inputs, hidden layers, outputs.
        relu: the activation is relu; otherwise tanh.
        min_log_std: floor of the log standard deviations.
        ratio: the inner objective is the likelihood ratio; otherwise the log-probability.
        l2: weight of the sum of squared parameters in the inner loss.
        second_order: differentiate through the gradients of the inner steps.
    """

    sizes: Sizes
    relu: bool
    min_log_std: float
    ratio: bool
    l2: float
    second_order: bool


class InnerStep(NamedTuple):
    """One inner step, with what its derivatives need.

    Attributes:
        params: (Q,) before the step.
        adapted: (Q,) after it.
        grads: (Q,) of the inner loss.
        activations: (S * H,) of the hidden layers.
        activation_grads: (S * H,) of the loss with respect to their inputs.
        mean: (S * A,) of the policy before the step.
        mean_grads: (S * A,) of the loss.
        log_prob_grads: (S,) of the loss.
    """

    params: Floats
    adapted: Floats
    grads: Floats
    activations: Floats
    activation_grads: Floats
    mean: Floats
    mean_grads: Floats
    log_prob_grads: Floats


@jit
def _empty_step(config: KernelConfig, params: Floats, samples: int) -> InnerStep:
    """Return an inner step from ``params`` (Q,) that is to be filled in; its gradients are zero."""
    hidden, outputs = samples * mlp.hidden_columns(config.sizes), samples * config.sizes[-1]
    return InnerStep(
        params,
        np.empty_like(params),
        np.zeros_like(params),
        np.empty(hidden, params.dtype),
        np.empty(hidden, params.dtype),
        np.empty(outputs, params.dtype),
        np.empty(outputs, params.dtype),
        np.empty(samples, params.dtype),
    )


@jit
def _step_block(step: InnerStep, sizes: Sizes, first: int, last: int) -> InnerStep:
    """View what ``step`` has of samples ``first`` to ``last``."""
    hidden, outputs = mlp.hidden_columns(sizes), sizes[-1]
    return InnerStep(
        step.params,
        step.adapted,
        step.grads,
        block(step.activations, first, last, hidden),
        block(step.activation_grads, first, last, hidden),
        block(step.mean, first, last, outputs),
        block(step.mean_grads, first, last, outputs),
        step.log_prob_grads[first:last],
    )


@jit
def take_step(
    config: KernelConfig, params: Floats, rates: Floats, samples: Samples[Floats]
) -> InnerStep:
    """Return the inner step on ``samples`` from ``params`` (Q,) at inner rates ``rates`` (Q,)."""
    sizes, size = config.sizes, samples.weights.size
    policy, log_std = mlp.make_network(sizes, config.relu, params), clamped_log_std(config, params)
    step, grads = _empty_step(config, params, size), np.zeros_like(params)
    log_std_grads, log_prob_scratch = np.zeros(sizes[-1]), np.empty(BLOCK, params.dtype)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        part, log_probs = _step_block(step, sizes, first, last), log_prob_scratch[: last - first]
        mlp.forward(policy, here.observations, part.activations, part.mean)
        gaussian.log_probs(part.mean, log_std, here.actions, log_probs)
        gaussian.inner_loss_grads(
            log_probs, here.log_probs, here.advantages, here.weights, part.log_prob_grads
        )
        gaussian.log_prob_vjp(
            part.mean, log_std, here.actions, part.log_prob_grads, part.mean_grads, log_std_grads
        )
        mlp.backward(
            policy,
            here.observations,
            part.activations,
            part.mean_grads,
            part.activation_grads,
            grads,
        )
    set_log_std_grads(config, params, log_std_grads, grads)
    for i in range(len(params)):
        step.grads[i] = grads[i] + 2.0 * config.l2 * params[i]
        step.adapted[i] = params[i] - rates[i] * step.grads[i]
    return step


@jit
def step_jvp(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    rates: Floats,
    tangent: Floats,
    rate_tangent: Floats,
) -> Floats:
    """Push tangents (Q,) of the parameters and of the rates forward through an inner step: (Q,)."""
    change = rate_tangent * step.grads
    if config.second_order:
        change += rates * hvp(config, step, samples, tangent)
    return tangent - change


@jit
def step_vjp(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    rates: Floats,
    adjoint: Floats,
    kl_coefficient: float,
    behavior: Gaussian[Floats],
) -> tuple[Floats, Floats]:
    """Pull an adjoint (Q,) of the adapted parameters back through an inner step.

    Args:
        config: sizes, inner objective and order.
        step: from :func:`take_step` on ``samples``.
        samples: of the task and phase.
        rates: (Q,) inner rates.
        adjoint: (Q,) of the adapted parameters.
        kl_coefficient: weight in the loss of KL(behavior || policy before the step).
        behavior: the policy that collected the samples: mean (S, A), log_std (A,).

    Returns:
        The gradients (Q,) with respect to the parameters before the step and to the rates.
    """
    rate_grads, change = -(adjoint * step.grads), np.zeros_like(adjoint)
    flat = Gaussian(behavior.mean.reshape(-1), behavior.log_std)
    if config.second_order:
        change = _hvp(config, step, samples, -(rates * adjoint), kl_coefficient, flat)
    elif kl_coefficient > 0.0:
        change = _kl_grads(config, step, samples, kl_coefficient, flat)
    return adjoint + change, rate_grads


@jit
def hvp(config: KernelConfig, step: InnerStep, samples: Samples[Floats], tangent: Floats) -> Floats:
    """Return the product (Q,) of the inner loss's Hessian with a tangent (Q,)."""
    itself = Gaussian(step.mean, clamped_log_std(config, step.params))
    return _hvp(config, step, samples, tangent, 0.0, itself)


@jit
def _hvp(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    tangent: Floats,
    kl_coefficient: float,
    behavior: Gaussian[Floats],
) -> Floats:
    """Return :func:`hvp` plus :func:`_kl_grads`, which share a pass backward."""
    sizes, size, params = config.sizes, samples.weights.size, step.params
    outputs, network = sizes[-1], len(params) - sizes[-1]
    policy, log_std = mlp.make_network(sizes, config.relu, params), clamped_log_std(config, params)
    direction = mlp.make_network(sizes, config.relu, tangent)
    masked = tangent.copy()
    mask_clamped(config, params, masked)
    change, log_std_grads = np.zeros_like(params), np.zeros(outputs)
    preact_tangents, act_tangents = hidden_scratch(sizes, params), hidden_scratch(sizes, params)
    tangent_scratch, grad_scratch = output_scratch(sizes, params), output_scratch(sizes, params)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        part = _step_block(step, sizes, first, last)
        mean_tangents = block(tangent_scratch, 0, last - first, outputs)
        mean_grads = block(grad_scratch, 0, last - first, outputs)
        mlp.forward_jvp(
            policy,
            direction,
            here.observations,
            part.activations,
            preact_tangents,
            act_tangents,
            mean_tangents,
        )
        gaussian.inner_loss_hvp(
            config.ratio,
            part.mean,
            log_std,
            here.actions,
            part.log_prob_grads,
            mean_tangents,
            masked[network:],
            mean_grads,
            log_std_grads,
        )
        if kl_coefficient > 0.0:
            old = Gaussian(block(behavior.mean, first, last, outputs), behavior.log_std)
            new = Gaussian(part.mean, log_std)
            gaussian.add_kl_grads(kl_coefficient, old, new, here.weights, mean_grads, log_std_grads)
        mlp.backward_jvp(
            policy,
            direction,
            here.observations,
            part.activations,
            part.mean_grads,
            part.activation_grads,
            preact_tangents,
            act_tangents,
            mean_grads,
            change,
        )
    set_log_std_grads(config, params, log_std_grads, change)
    for i in range(len(change)):
        change[i] += 2.0 * config.l2 * tangent[i]
    return change


@jit
def _kl_grads(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    kl_coefficient: float,
    behavior: Gaussian[Floats],
) -> Floats:
    """Return the gradient (Q,) of KL(behavior || policy before the step), times its coefficient."""
    sizes, size, params = config.sizes, samples.weights.size, step.params
    policy, log_std = mlp.make_network(sizes, config.relu, params), clamped_log_std(config, params)
    grads, log_std_grads = np.zeros_like(params), np.zeros(sizes[-1])
    preact_grads = hidden_scratch(sizes, params)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        part = _step_block(step, sizes, first, last)
        mean_grads = np.zeros_like(part.mean)
        old = Gaussian(block(behavior.mean, first, last, sizes[-1]), behavior.log_std)
        new = Gaussian(part.mean, log_std)
        gaussian.add_kl_grads(kl_coefficient, old, new, here.weights, mean_grads, log_std_grads)
        mlp.backward(policy, here.observations, part.activations, mean_grads, preact_grads, grads)
    set_log_std_grads(config, params, log_std_grads, grads)
    return grads


@jit
def clamped_log_std(config: KernelConfig, params: Floats) -> Floats:
    """Return the log standard deviations (A,), not below their floor."""
    return np.maximum(
        params[len(params) - config.sizes[-1] :], params.dtype.type(config.min_log_std)
    )


@jit
def mask_clamped(config: KernelConfig, params: Floats, grads: Floats) -> None:
    """Zero the gradient of each log standard deviation that lies below its floor, in place."""
    for i in range(len(params) - config.sizes[-1], len(params)):
        if params[i] < params.dtype.type(config.min_log_std):
            grads[i] = 0.0


@jit
def set_log_std_grads(
    config: KernelConfig, params: Floats, log_std_grads: Floats, grads: Floats
) -> None:
    """Write the gradients (A,) of the log standard deviations to the last A of ``grads`` (Q,)."""
    grads[len(grads) - config.sizes[-1] :] = log_std_grads
    mask_clamped(config, params, grads)
