"""Multiply by the Fisher matrix of one task's policy, for a trust region.

Axes: as in :mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.blocks import BLOCK, block, hidden_scratch, output_scratch, samples_block
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
    policy = mlp.make_network(sizes, config.relu, params)
    direction = mlp.make_network(sizes, config.relu, tangent)
    product, log_std_product = np.zeros_like(tangent), np.zeros(outputs)
    preact_scratch, act_tangents = hidden_scratch(sizes, params), hidden_scratch(sizes, params)
    mean_scratch = output_scratch(sizes, params)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        here = samples_block(samples, sizes, first, last)
        seen, weights = here.observations, here.weights
        activations = block(query.activations, first, last, hidden)
        mean_tangents = block(mean_scratch, 0, last - first, outputs)
        mlp.forward_jvp(
            policy, direction, seen, activations, preact_scratch, act_tangents, mean_tangents
        )
        gaussian.multiply_by_fisher(query.log_std, weights, mean_tangents)
        mlp.backward(policy, seen, activations, mean_tangents, preact_scratch, product)
    log_std_product[:] = 2.0 * samples.weights.sum() * tangent[len(params) - outputs :]
    inner_step.set_log_std_grads(config, params, log_std_product, product)
    return product
