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
    network = len(params) - config.sizes[-1]
    observations, activations = samples.observations.reshape(-1), query.activations
    activation_tangents, mean_tangents = np.empty_like(activations), np.empty_like(query.mean)
    product = tangent.copy()
    mlp.forward_jvp(
        config.sizes,
        config.relu,
        params[:network],
        observations,
        activations,
        tangent[:network],
        activation_tangents,
        mean_tangents,
    )
    inner_step.mask_clamped(config, params, product)
    gaussian.multiply_by_fisher(
        query.log_std, samples.weights.reshape(-1), mean_tangents, product[network:]
    )
    inner_step.pull_back_policy(
        config,
        params,
        observations,
        activations,
        mean_tangents,
        activation_tangents,  # no longer needed: overwritten
        product,
    )
    return product
