"""Take an inner step on a context vector, and push derivatives forward and back through it.

The first hidden layer computes ``W_x x + b + W tanh(z)`` with a context z. The policy's bias is
``b + W tanh(z)``, so that acting need not know of z, and a step moves both:

    z'    = z - rate * (1 - tanh(z)^2) * W^T g
    bias' = bias + W (tanh(z') - tanh(z))

with g the gradient of the inner loss by the bias, and a rate for each number of z. In first order
the gradient of z, all that the rate multiplies, is a constant.

Axes: U units of the first hidden layer, C numbers of the context; C is 0 if there is none.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels.jit import jit, tanh
from maml_ray.kernels.types import Floats, InnerRule


@jit
def move(rule: InnerRule, context: Floats, grads: Floats, bias: Floats) -> Floats:
    """Return the context (C,) after a step, and move ``bias`` (U,) with it, in place.

    ``grads`` (U,) are those of the inner loss by the bias.
    """
    moved, weight = np.empty_like(context), rule.context_weight
    for k in range(len(context)):
        before = tanh(context[k])
        slope = 1.0 - before * before
        moved[k] = context[k] - rule.context_rates[k] * slope * _dot(weight, k, grads)
        _add(weight, k, tanh(moved[k]) - before, bias)
    return moved


@jit
def move_jvp(
    rule: InnerRule,
    context: Floats,
    moved: Floats,
    grads: Floats,
    second_order: bool,
    rule_tangent: InnerRule,
    context_tangent: Floats,
    grads_tangent: Floats,
    bias_tangent: Floats,
) -> Floats:
    """Push tangents through :func:`move`: add that of the bias's change to ``bias_tangent`` (U,).

    Returns:
        The tangent (C,) of the context ``moved`` after the step.
    """
    moved_tangent = np.empty_like(context)
    weight, weight_tangent = rule.context_weight, rule_tangent.context_weight
    for k in range(len(context)):
        before, after = tanh(context[k]), tanh(moved[k])
        slope, moved_slope = 1.0 - before * before, 1.0 - after * after
        by_grads = _dot(weight, k, grads)
        change = rule_tangent.context_rates[k] * slope * by_grads
        if second_order:
            by_grads_tangent = _dot(weight, k, grads_tangent) + _dot(weight_tangent, k, grads)
            slope_tangent = -2.0 * before * slope * context_tangent[k]
            change += rule.context_rates[k] * (slope * by_grads_tangent + slope_tangent * by_grads)
        moved_tangent[k] = context_tangent[k] - change
        _add(weight_tangent, k, after - before, bias_tangent)
        _add(weight, k, moved_slope * moved_tangent[k] - slope * context_tangent[k], bias_tangent)
    return moved_tangent


@jit
def move_vjp(
    rule: InnerRule,
    context: Floats,
    moved: Floats,
    grads: Floats,
    second_order: bool,
    adjoint: Floats,
    moved_adjoint: Floats,
    grads_adjoint: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Pull adjoints of the bias (U,) and of the context (C,) after a step back through it.

    Adds the adjoint of ``grads`` to ``grads_adjoint`` (U,).

    Returns:
        The adjoint (C,) of the context before the step, and the gradients with respect to its
        rates (C,) and weights (U, C).
    """
    weight = rule.context_weight
    context_adjoint, rate_grads = np.empty_like(context), np.empty_like(context)
    weight_grads = np.empty_like(weight)
    for k in range(len(context)):
        before, after = tanh(context[k]), tanh(moved[k])
        slope, moved_slope = 1.0 - before * before, 1.0 - after * after
        by_grads, by_adjoint = _dot(weight, k, grads), _dot(weight, k, adjoint)
        total = moved_adjoint[k] + moved_slope * by_adjoint
        context_adjoint[k] = total - slope * by_adjoint
        rate_grads[k] = -slope * by_grads * total
        by_grads_adjoint = 0.0
        if second_order:
            by_grads_adjoint = -rule.context_rates[k] * slope * total
            context_adjoint[k] -= 2.0 * before * by_grads * by_grads_adjoint
            _add(weight, k, by_grads_adjoint, grads_adjoint)
        for i in range(len(adjoint)):
            weight_grads[i, k] = adjoint[i] * (after - before) + grads[i] * by_grads_adjoint
    return context_adjoint, rate_grads, weight_grads


@jit
def _dot(weight: Floats, k: int, vector: Floats) -> float:
    """Return the product of column ``k`` of ``weight`` (U, C) with a vector (U,)."""
    total = 0.0
    for i in range(len(vector)):
        total += weight[i, k] * vector[i]
    return total


@jit
def _add(weight: Floats, k: int, factor: float, vector: Floats) -> None:
    """Add ``factor`` times column ``k`` of ``weight`` (U, C) to a vector (U,), in place."""
    for i in range(len(vector)):
        vector[i] += weight[i, k] * factor
