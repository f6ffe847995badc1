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
def take_step(
    config: KernelConfig, params: Floats, rates: Floats, samples: Samples[Floats]
) -> InnerStep:
    """Return the inner step on ``samples`` from ``params`` (Q,) at inner rates ``rates`` (Q,)."""
    sizes, size, dtype = config.sizes, samples.weights.size, params.dtype
    outputs, hidden = sizes[-1], mlp.hidden_columns(sizes)
    observations, actions = samples.observations.reshape(-1), samples.actions.reshape(-1)
    behavior_log_probs, advantages = samples.log_probs.reshape(-1), samples.advantages.reshape(-1)
    weights, log_std = samples.weights.reshape(-1), clamped_log_std(config, params)
    policy = mlp.make_network(sizes, config.relu, params)
    activations, mean = np.empty(size * hidden, dtype), np.empty_like(actions)
    activation_grads, mean_grads = np.empty_like(activations), np.empty_like(mean)
    log_probs, log_prob_grads = np.empty(mlp.BLOCK, dtype), np.empty(size, dtype)
    grads, log_std_grads, adapted = np.zeros_like(params), np.zeros(outputs), np.empty_like(params)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        seen = mlp.block(observations, first, last, sizes[0])
        taken = mlp.block(actions, first, last, outputs)
        block_activations = mlp.block(activations, first, last, hidden)
        means = mlp.block(mean, first, last, outputs)
        grads_of_means = mlp.block(mean_grads, first, last, outputs)
        mlp.forward(policy, seen, block_activations, means)
        gaussian.log_probs(means, log_std, taken, log_probs[: last - first])
        gaussian.inner_loss_grads(
            log_probs,
            behavior_log_probs[first:last],
            advantages[first:last],
            weights[first:last],
            log_prob_grads[first:last],
        )
        gaussian.log_prob_vjp(
            means, log_std, taken, log_prob_grads[first:last], grads_of_means, log_std_grads
        )
        mlp.backward(
            policy,
            seen,
            block_activations,
            grads_of_means,
            mlp.block(activation_grads, first, last, hidden),
            grads,
        )
    grads[len(grads) - outputs :] = log_std_grads
    mask_clamped(config, params, grads)
    for i in range(len(params)):
        grads[i] += 2.0 * config.l2 * params[i]
        adapted[i] = params[i] - rates[i] * grads[i]
    return InnerStep(
        params, adapted, grads, activations, activation_grads, mean, mean_grads, log_prob_grads
    )


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
    behavior_mean = behavior.mean.reshape(-1)
    if config.second_order:
        change = _hvp(
            config,
            step,
            samples,
            -(rates * adjoint),
            kl_coefficient,
            behavior_mean,
            behavior.log_std,
        )
    elif kl_coefficient > 0.0:
        change = _kl_grads(config, step, samples, kl_coefficient, behavior_mean, behavior.log_std)
    return adjoint + change, rate_grads


@jit
def hvp(config: KernelConfig, step: InnerStep, samples: Samples[Floats], tangent: Floats) -> Floats:
    """Return the product (Q,) of the inner loss's Hessian with a tangent (Q,)."""
    log_std = clamped_log_std(config, step.params)
    return _hvp(config, step, samples, tangent, 0.0, step.mean, log_std)


@jit
def _hvp(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    tangent: Floats,
    kl_coefficient: float,
    behavior_mean: Floats,
    behavior_log_std: Floats,
) -> Floats:
    """Return :func:`hvp` plus :func:`_kl_grads`, which share a pass backward."""
    sizes, size, params = config.sizes, samples.weights.size, step.params
    outputs, hidden, network = sizes[-1], mlp.hidden_columns(sizes), len(params) - sizes[-1]
    observations, actions = samples.observations.reshape(-1), samples.actions.reshape(-1)
    weights, log_std = samples.weights.reshape(-1), clamped_log_std(config, params)
    policy = mlp.make_network(sizes, config.relu, params)
    direction = mlp.make_network(sizes, config.relu, tangent)
    masked = tangent.copy()
    mask_clamped(config, params, masked)
    change, log_std_grads = np.zeros_like(params), np.zeros(outputs)
    preact_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    act_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    tangent_scratch = np.empty(mlp.BLOCK * outputs, params.dtype)
    grad_scratch = np.empty(mlp.BLOCK * outputs, params.dtype)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        seen = mlp.block(observations, first, last, sizes[0])
        activations = mlp.block(step.activations, first, last, hidden)
        preact_tangents = mlp.block(preact_scratch, 0, last - first, hidden)
        act_tangents = mlp.block(act_scratch, 0, last - first, hidden)
        means = mlp.block(step.mean, first, last, outputs)
        mean_tangents = mlp.block(tangent_scratch, 0, last - first, outputs)
        mean_grads = mlp.block(grad_scratch, 0, last - first, outputs)
        mlp.forward_jvp(
            policy, direction, seen, activations, preact_tangents, act_tangents, mean_tangents
        )
        gaussian.inner_loss_hvp(
            config.ratio,
            means,
            log_std,
            mlp.block(actions, first, last, outputs),
            step.log_prob_grads[first:last],
            mean_tangents,
            masked[network:],
            mean_grads,
            log_std_grads,
        )
        if kl_coefficient > 0.0:
            gaussian.add_kl_grads(
                kl_coefficient,
                mlp.block(behavior_mean, first, last, outputs),
                behavior_log_std,
                means,
                log_std,
                weights[first:last],
                mean_grads,
                log_std_grads,
            )
        mlp.backward_jvp(
            policy,
            direction,
            seen,
            activations,
            mlp.block(step.mean_grads, first, last, outputs),
            mlp.block(step.activation_grads, first, last, hidden),
            preact_tangents,
            act_tangents,
            mean_grads,
            change,
        )
    change[network:] = log_std_grads
    mask_clamped(config, params, change)
    for i in range(len(change)):
        change[i] += 2.0 * config.l2 * tangent[i]
    return change


@jit
def _kl_grads(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    kl_coefficient: float,
    behavior_mean: Floats,
    behavior_log_std: Floats,
) -> Floats:
    """Return the gradient (Q,) of KL(behavior || policy before the step), times its coefficient."""
    sizes, size, params = config.sizes, samples.weights.size, step.params
    outputs, hidden = sizes[-1], mlp.hidden_columns(sizes)
    observations, weights = samples.observations.reshape(-1), samples.weights.reshape(-1)
    policy, log_std = mlp.make_network(sizes, config.relu, params), clamped_log_std(config, params)
    grads, log_std_grads = np.zeros_like(params), np.zeros(outputs)
    hidden_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        mean_grads = np.zeros((last - first) * outputs, params.dtype)
        gaussian.add_kl_grads(
            kl_coefficient,
            mlp.block(behavior_mean, first, last, outputs),
            behavior_log_std,
            mlp.block(step.mean, first, last, outputs),
            log_std,
            weights[first:last],
            mean_grads,
            log_std_grads,
        )
        mlp.backward(
            policy,
            mlp.block(observations, first, last, sizes[0]),
            mlp.block(step.activations, first, last, hidden),
            mean_grads,
            mlp.block(hidden_scratch, 0, last - first, hidden),
            grads,
        )
    grads[len(grads) - outputs :] = log_std_grads
    mask_clamped(config, params, grads)
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
