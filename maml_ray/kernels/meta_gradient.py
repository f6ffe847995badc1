"""Evaluate an adapted policy at one task's query samples, and pull loss gradients back.

The outer loss is not computed here: :func:`evaluate_query` stops at log-probabilities, and
:func:`query_vjp` takes the loss's gradient with respect to them. So the kernels serve every outer
objective that is a function of log-probabilities.

Axes: as in :mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.inner_step import InnerStep, KernelConfig
from maml_ray.kernels.jit import jit
from maml_ray.kernels.types import Floats, Gaussian, Samples


class QueryPass(NamedTuple):
    """A forward pass of an adapted policy.

    Attributes:
        activations: (S * H,) of the hidden layers.
        mean: (S * A,) of the policy.
        log_std: (A,) of the policy, clamped.
        log_probs: (S,) of the query actions.
    """

    activations: Floats
    mean: Floats
    log_std: Floats
    log_probs: Floats


@jit
def evaluate_query(config: KernelConfig, params: Floats, samples: Samples[Floats]) -> QueryPass:
    """Evaluate the policy of ``params`` (Q,) at query samples."""
    sizes, size = config.sizes, samples.weights.size
    outputs, hidden = sizes[-1], mlp.hidden_columns(sizes)
    observations, actions = samples.observations.reshape(-1), samples.actions.reshape(-1)
    policy, log_std = (
        mlp.make_network(sizes, config.relu, params),
        inner_step.clamped_log_std(config, params),
    )
    activations = np.empty(size * hidden, params.dtype)
    mean, log_probs = np.empty_like(actions), np.empty(size, params.dtype)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        means = mlp.block(mean, first, last, outputs)
        mlp.forward(
            policy,
            mlp.block(observations, first, last, sizes[0]),
            mlp.block(activations, first, last, hidden),
            means,
        )
        taken = mlp.block(actions, first, last, outputs)
        gaussian.log_probs(means, log_std, taken, log_probs[first:last])
    return QueryPass(activations, mean, log_std, log_probs)


@jit
def query_vjp(
    config: KernelConfig,
    params: Floats,
    samples: Samples[Floats],
    query: QueryPass,
    log_prob_grads: Floats,
) -> Floats:
    """Pull the outer loss's gradient (S,) with respect to log-probabilities back to ``params``.

    Args:
        config: sizes of the network.
        params: (Q,) of the adapted policy.
        samples: query samples.
        query: from :func:`evaluate_query` at ``params``.
        log_prob_grads: (S,).

    Returns:
        The gradient (Q,).
    """
    sizes, size = config.sizes, samples.weights.size
    outputs, hidden = sizes[-1], mlp.hidden_columns(sizes)
    observations, actions = samples.observations.reshape(-1), samples.actions.reshape(-1)
    policy = mlp.make_network(sizes, config.relu, params)
    grads, log_std_grads = np.zeros_like(params), np.zeros(outputs)
    hidden_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    mean_scratch = np.empty(mlp.BLOCK * outputs, params.dtype)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        mean_grads = mlp.block(mean_scratch, 0, last - first, outputs)
        gaussian.log_prob_vjp(
            mlp.block(query.mean, first, last, outputs),
            query.log_std,
            mlp.block(actions, first, last, outputs),
            log_prob_grads[first:last],
            mean_grads,
            log_std_grads,
        )
        mlp.backward(
            policy,
            mlp.block(observations, first, last, sizes[0]),
            mlp.block(query.activations, first, last, hidden),
            mean_grads,
            mlp.block(hidden_scratch, 0, last - first, hidden),
            grads,
        )
    grads[len(grads) - outputs :] = log_std_grads
    inner_step.mask_clamped(config, params, grads)
    return grads


@jit
def query_stats(
    query: QueryPass, behavior: Gaussian[Floats], samples: Samples[Floats], clip: float
) -> tuple[float, float, float, float]:
    """Compare the adapted policy with the behavior policy at query samples.

    Returns:
        The mean KL(behavior || adapted policy) in nats, the share of ratios outside ``1 +- clip``,
        the largest ``|ratio - 1|``, and the adapted policy's mean entropy in nats.
    """
    weights = samples.weights.reshape(-1)
    kl = gaussian.kl(
        behavior.mean.reshape(-1), behavior.log_std, query.mean, query.log_std, weights
    )
    fraction, largest = gaussian.ratio_stats(
        clip, query.log_probs, samples.log_probs.reshape(-1), weights
    )
    return kl, fraction, largest, gaussian.entropy(query.log_std, weights)


@jit
def support_kl(
    config: KernelConfig, step: InnerStep, behavior: Gaussian[Floats], samples: Samples[Floats]
) -> float:
    """Return the mean KL(behavior || policy before an inner step) at support samples, in nats."""
    return gaussian.kl(
        behavior.mean.reshape(-1),
        behavior.log_std,
        step.mean,
        inner_step.clamped_log_std(config, step.params),
        samples.weights.reshape(-1),
    )
