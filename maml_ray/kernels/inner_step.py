"""Take one inner gradient step on one task, and differentiate through it.

The derivatives of the step ``adapted = params - rates * grad L(params)`` are products with the
Hessian of the inner loss L: forward over reverse mode (Pearlmutter 1994,
https://doi.org/10.1162/neco.1994.6.1.147).

Axes: S samples, A action size, H sum of the hidden layers' sizes, Q = P + A parameters of the
policy: P of the network, then A log standard deviations.
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
    observations, actions = samples.observations.reshape(-1), samples.actions.reshape(-1)
    weights = samples.weights.reshape(-1)
    dtype, size = params.dtype, samples.weights.size
    network = len(params) - config.sizes[-1]
    log_std = clamped_log_std(config, params)
    activations, mean = empty_activations(config, params, size), np.empty_like(actions)
    activation_grads, mean_grads = np.empty_like(activations), np.empty_like(mean)
    log_probs, log_prob_grads = np.empty(size, dtype), np.empty(size, dtype)
    grads, adapted = np.empty_like(params), np.empty_like(params)
    mlp.forward(config.sizes, config.relu, params[:network], observations, activations, mean)
    gaussian.log_probs(mean, log_std, actions, log_probs)
    gaussian.inner_loss_grads(
        log_probs,
        samples.log_probs.reshape(-1),
        samples.advantages.reshape(-1),
        weights,
        log_prob_grads,
    )
    gaussian.log_prob_vjp(mean, log_std, actions, log_prob_grads, mean_grads, grads[network:])
    pull_back_policy(config, params, observations, activations, mean_grads, activation_grads, grads)
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
    network = len(adjoint) - config.sizes[-1]
    rate_grads = -(adjoint * step.grads)
    if not config.second_order and kl_coefficient == 0.0:
        return adjoint.copy(), rate_grads
    tangent = -(rates * adjoint)
    if config.second_order:
        activation_tangents, mean_grads, change = _policy_grad_jvp(config, step, samples, tangent)
    else:
        activation_tangents = np.empty_like(step.activations)
        mean_grads, change = np.zeros_like(step.mean), np.zeros_like(adjoint)
    if kl_coefficient > 0.0:
        gaussian.add_kl_grads(
            kl_coefficient,
            behavior.mean.reshape(-1),
            behavior.log_std,
            step.mean,
            clamped_log_std(config, step.params),
            samples.weights.reshape(-1),
            mean_grads,
            change[network:],
        )
    if config.second_order:
        _params_grad_jvp(config, step, samples, tangent, activation_tangents, mean_grads, change)
    else:
        observations = samples.observations.reshape(-1)
        pull_back_policy(
            config,
            step.params,
            observations,
            step.activations,
            mean_grads,
            np.empty_like(step.activations),
            change,
        )
    return adjoint + change, rate_grads


@jit
def hvp(config: KernelConfig, step: InnerStep, samples: Samples[Floats], tangent: Floats) -> Floats:
    """Return the product (Q,) of the inner loss's Hessian with a tangent (Q,)."""
    activation_tangents, mean_grads, change = _policy_grad_jvp(config, step, samples, tangent)
    _params_grad_jvp(config, step, samples, tangent, activation_tangents, mean_grads, change)
    return change


@jit
def _policy_grad_jvp(
    config: KernelConfig, step: InnerStep, samples: Samples[Floats], tangent: Floats
) -> tuple[Floats, Floats, Floats]:
    """Push a tangent (Q,) forward to the network and to the loss's gradients at its outputs.

    Returns:
        Tangents of the hidden layers' inputs (S * H,), of the gradients of means (S * A,), and (Q,)
        whose last A are those of the gradients of the log standard deviations.
    """
    network = len(step.params) - config.sizes[-1]
    activation_tangents, mean_tangents = np.empty_like(step.activations), np.empty_like(step.mean)
    mean_grads, change = np.empty_like(step.mean), np.empty_like(step.params)
    mlp.forward_jvp(
        config.sizes,
        config.relu,
        step.params[:network],
        samples.observations.reshape(-1),
        step.activations,
        tangent[:network],
        activation_tangents,
        mean_tangents,
    )
    masked = tangent.copy()
    mask_clamped(config, step.params, masked)
    gaussian.inner_loss_hvp(
        config.ratio,
        step.mean,
        clamped_log_std(config, step.params),
        samples.actions.reshape(-1),
        step.log_prob_grads,
        mean_tangents,
        masked[network:],
        mean_grads,
        change[network:],
    )
    return activation_tangents, mean_grads, change


@jit
def _params_grad_jvp(
    config: KernelConfig,
    step: InnerStep,
    samples: Samples[Floats],
    tangent: Floats,
    activation_tangents: Floats,
    mean_grads: Floats,
    change: Floats,
) -> None:
    """Complete ``change`` (Q,) to the tangent of the gradient, from :func:`_policy_grad_jvp`."""
    network = len(step.params) - config.sizes[-1]
    mlp.backward_jvp(
        config.sizes,
        config.relu,
        step.params[:network],
        samples.observations.reshape(-1),
        step.activations,
        step.mean_grads,
        step.activation_grads,
        tangent[:network],
        activation_tangents,
        mean_grads,
        change[:network],
    )
    mask_clamped(config, step.params, change)
    for i in range(len(change)):
        change[i] += 2.0 * config.l2 * tangent[i]


@jit
def pull_back_policy(
    config: KernelConfig,
    params: Floats,
    observations: Floats,
    activations: Floats,
    mean_grads: Floats,
    activation_grads: Floats,
    grads: Floats,
) -> None:
    """Complete ``grads`` (Q,), whose last A are those of ``log_std``, from gradients of means.

    Fills ``activation_grads`` (S * H,), those of the hidden layers' inputs, on the way.
    """
    network = len(params) - config.sizes[-1]
    mlp.backward(
        config.sizes,
        config.relu,
        params[:network],
        observations,
        activations,
        mean_grads,
        activation_grads,
        grads[:network],
    )
    mask_clamped(config, params, grads)


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
def empty_activations(config: KernelConfig, params: Floats, samples: int) -> Floats:
    """Return an uninitialized array (S * H,) for the hidden layers' activations."""
    return np.empty(samples * config.sizes[1:-1].sum(), params.dtype)
