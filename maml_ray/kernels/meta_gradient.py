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
from maml_ray.kernels.blocks import BLOCK, block, hidden_scratch, output_scratch, samples_block
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
    policy = mlp.make_network(sizes, config.relu, params)
    query = QueryPass(
        np.empty(size * hidden, params.dtype),
        np.empty(size * outputs, params.dtype),
        inner_step.clamped_log_std(config, params),
        np.empty(size, params.dtype),
    )
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        mean = block(query.mean, first, last, outputs)
        activations = block(query.activations, first, last, hidden)
        mlp.forward(policy, here.observations, activations, mean)
        gaussian.log_probs(mean, query.log_std, here.actions, query.log_probs[first:last])
    return query


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
    policy = mlp.make_network(sizes, config.relu, params)
    grads, log_std_grads = np.zeros_like(params), np.zeros(outputs)
    preact_grads, mean_scratch = hidden_scratch(sizes, params), output_scratch(sizes, params)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        mean_grads = block(mean_scratch, 0, last - first, outputs)
        gaussian.log_prob_vjp(
            block(query.mean, first, last, outputs),
            query.log_std,
            here.actions,
            log_prob_grads[first:last],
            mean_grads,
            log_std_grads,
        )
        activations = block(query.activations, first, last, hidden)
        mlp.backward(policy, here.observations, activations, mean_grads, preact_grads, grads)
    inner_step.set_log_std_grads(config, params, log_std_grads, grads)
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
