"""Multiply by the Fisher matrix of one task's policy, for a trust region.

Axes: as in :mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.jit import jit
from maml_ray.kernels.types import Floats, Samples


@jit
def fisher_product(
    config: KernelConfig, params: Floats, samples: Samples[Floats], tangent: Floats
) -> Floats:
    """Return the product (Q,) of the Hessian of a policy's mean KL, at zero, with a tangent (Q,).

    ``J^T F J tangent``, with J the Jacobian of the policy's means and log standard deviations at
    the samples, and F their Fisher matrix.
    """
    size, outputs = samples.weights.size, config.sizes[-1]
    network, log_std = len(params) - outputs, inner_step.clamped_log_std(config, params)
    observations = samples.observations.reshape(-1)
    activations = inner_step.empty_activations(config, params, size)
    activation_tangents, mean = np.empty_like(activations), np.empty(size * outputs, params.dtype)
    mean_tangents, product = np.empty_like(mean), tangent.copy()
    mlp.forward(config.sizes, config.relu, params[:network], observations, activations, mean)
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
        log_std, samples.weights.reshape(-1), mean_tangents, product[network:]
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
