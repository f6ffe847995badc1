"""Multiply by the Fisher matrix of one task's policy, for a trust region.

Axes: as in :mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.jit import jit
from maml_ray.kernels.meta_gradient import QueryPass
from maml_ray.kernels.types import Floats, Samples


@jit
def fisher_product(
    config: KernelConfig,
    params: Floats,
    samples: Samples[Floats],
    query: QueryPass,
    tangent: Floats,
) -> Floats:
    """Return the product (Q,) of the Hessian of a policy's mean KL, at zero, with a tangent (Q,).

    ``J^T F J tangent``, with J the Jacobian of the policy's means and log standard deviations at
    the samples, and F their Fisher matrix.

    Args:
        config: sizes of the network.
        params: (Q,) of the policy.
        samples: whose observations and weights count.
        query: the policy's pass over the samples.
        tangent: (Q,).
    """
    sizes, size = config.sizes, samples.weights.size
    outputs, hidden = sizes[-1], mlp.hidden_columns(sizes)
    observations, weights = samples.observations.reshape(-1), samples.weights.reshape(-1)
    policy = mlp.make_network(sizes, config.relu, params)
    direction = mlp.make_network(sizes, config.relu, tangent)
    product = np.zeros_like(tangent)
    preact_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    act_scratch = np.empty(mlp.BLOCK * hidden, params.dtype)
    mean_scratch = np.empty(mlp.BLOCK * outputs, params.dtype)
    for first in range(0, size, mlp.BLOCK):
        last = min(first + mlp.BLOCK, size)
        seen = mlp.block(observations, first, last, sizes[0])
        activations = mlp.block(query.activations, first, last, hidden)
        preact_tangents = mlp.block(preact_scratch, 0, last - first, hidden)
        act_tangents = mlp.block(act_scratch, 0, last - first, hidden)
        mean_tangents = mlp.block(mean_scratch, 0, last - first, outputs)
        mlp.forward_jvp(
            policy, direction, seen, activations, preact_tangents, act_tangents, mean_tangents
        )
        gaussian.multiply_by_fisher(query.log_std, weights[first:last], mean_tangents)
        preact_grads = preact_tangents  # no longer needed: overwritten
        mlp.backward(policy, seen, activations, mean_tangents, preact_grads, product)
    for i in range(len(params) - outputs, len(params)):
        product[i] = 2.0 * weights.sum() * tangent[i]
    inner_step.mask_clamped(config, params, product)
    return product
