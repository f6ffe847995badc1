"""The Hessian of one task's mean KL as a compiled loop: for a trust region.

Axes: as in :mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.gaussian import Floats
from maml_ray.kernels.inner_step import Data, Rules, Steps
from maml_ray.kernels.jit import jit


@jit
def fisher_product(
    rules: Rules,
    rates: Floats,
    steps: Steps,
    support: Data,
    observations: Floats,
    weights: Floats,
    direction: Floats,
    rates_moved: Floats,
    gradient: Floats,
    by_rate: Floats,
) -> None:
    """The Hessian of one task's mean KL at the query data, where it is zero, times a direction.

    ``J^T F J``: the direction goes forward through the inner steps to the adapted policy's outputs,
    through their Fisher matrix, and back.

    Args:
        rules: what is asked for.
        rates: (Q,) the inner rates.
        steps: from :func:`steps_taken` on ``support``.
        support: (K, ...).
        observations: of the query.
        weights: (S,) of its samples.
        direction: (Q,) of the policy's meta-parameters.
        rates_moved: (Q,) of the rates.
        gradient: (Q,) the product's part of the policy, to be filled in.
        by_rate: (Q,) that of the rates, likewise.
    """
    change, count = direction.copy(), len(steps.weights)
    for k in range(count):
        moved = rates_moved * steps.gradients[k]
        if rules.second:
            moved += rates * inner_step.hessian_product(rules, steps, support, k, change)
        change -= moved
    gradient[:] = _by_fisher(rules, steps.thetas[count], observations, weights, change)
    by_rate[:] = 0
    for k in range(count - 1, -1, -1):
        by_rate -= gradient * steps.gradients[k]
        if rules.second:
            gradient += inner_step.hessian_product(rules, steps, support, k, -(rates * gradient))


@jit
def _by_fisher(
    rules: Rules, theta: Floats, observations: Floats, weights: Floats, direction: Floats
) -> Floats:
    """The Hessian of a policy's own mean KL, at zero, times a direction (Q,): one of the same."""
    samples, outputs = len(weights), rules.sizes[-1]
    network, log_std = len(theta) - outputs, inner_step.floored(rules, theta)
    hidden = inner_step.room_for_hidden(rules, theta, samples)
    before, mean = np.empty_like(hidden), np.empty(samples * outputs, theta.dtype)
    moved, gradient = np.empty_like(mean), direction.copy()
    parameters = theta[:network]
    mlp.forward(rules.sizes, rules.relu, parameters, observations, hidden, mean)
    mlp.forward_jvp(
        rules.sizes,
        rules.relu,
        parameters,
        observations,
        hidden,
        direction[:network],
        before,
        moved,
    )
    inner_step.hold(rules, theta, gradient)
    gaussian.fisher_slopes(log_std, weights, moved, gradient[network:])
    inner_step.to_gradient(rules, theta, observations, hidden, moved, gradient)
    return gradient
