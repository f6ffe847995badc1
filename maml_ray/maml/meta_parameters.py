"""Name and initialize the meta-parameters: the policy's, and those of the inner steps.

All are in one dictionary, so that they are optimized, published and saved in the same way. Beside
the policy's parameters it may hold:

- learned inner rates (Meta-SGD, Li et al. 2017, https://arxiv.org/abs/1707.09835), as logarithms
  under ``log_inner_rate/<name>``, with the shape of what takes the steps: a rate cannot become
  negative;
- ``context_weight`` (U, C): weights from a context vector of C numbers to the U units of the first
  hidden layer (CAVIA, Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642).

After an inner step the dictionary also holds ``context`` (C,), where further steps go on from; it
is no meta-parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from maml_ray.config.sections import InnerSettings
from maml_ray.policies.context import CONTEXT, CONTEXT_WEIGHT
from maml_ray.policies.spec import NumpyParameters, PolicySpec, initial_parameters

LOG_RATE = "log_inner_rate/"
Value = TypeVar("Value")


def initial_meta_parameters(
    spec: PolicySpec, inner: InnerSettings, rng: np.random.Generator
) -> NumpyParameters:
    """Return fresh meta-parameters.

    Learned rates start at ``inner.learning_rate``. A context's weights are normal of variance
    ``inner.context_variance`` / C, so that this is the most that C numbers within -1 and 1 add to
    the variance of a unit's input. They are drawn last: the others do not depend on them.
    """
    parameters = initial_parameters(spec, rng)
    if inner.learn_inner_rates:
        start = math.log(inner.learning_rate)
        for name, shape in adapted_shapes(inner, spec).items():
            parameters[LOG_RATE + name] = np.full(shape, start, np.float32)
    if inner.parameters == "context":
        draws = rng.standard_normal(_context_weight_shape(inner, spec))
        scale = math.sqrt(inner.context_variance / inner.context_size)
        parameters[CONTEXT_WEIGHT] = (scale * draws).astype(np.float32)
    return parameters


def meta_parameter_shapes(spec: PolicySpec, inner: InnerSettings) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every meta-parameter, in order."""
    shapes = spec.shapes()
    if inner.learn_inner_rates:
        adapted = adapted_shapes(inner, spec)
        shapes |= {LOG_RATE + name: shape for name, shape in adapted.items()}
    if inner.parameters == "context":
        shapes[CONTEXT_WEIGHT] = _context_weight_shape(inner, spec)
    return shapes


def adapted_shapes(inner: InnerSettings, spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of what takes inner steps: parameters of the policy, or the context."""
    if inner.parameters == "context":
        return {CONTEXT: (inner.context_size,)}
    shapes = spec.shapes()
    if inner.parameters == "head":
        return {name: shapes[name] for name in shapes if name.startswith(f"{spec.head}.")}
    return shapes


def policy_part(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """Return the policy's parameters, without those of the inner steps and without a context."""
    return {
        name: value
        for name, value in parameters.items()
        if not name.startswith(LOG_RATE) and name not in (CONTEXT, CONTEXT_WEIGHT)
    }


def inner_rates(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, Value],
    exp: Callable[[Value], Value],
) -> dict[str, float | Value]:
    """Return the inner rate of each of the policy's parameters, or of the context, by name.

    Only what takes inner steps has one: see :func:`adapted_shapes`.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: meta-parameters, as arrays or tensors.
        exp: the exponential function of these arrays or tensors.
    """
    names = adapted_shapes(inner, spec)
    if not inner.learn_inner_rates:
        return dict.fromkeys(names, inner.learning_rate)
    return {name: exp(parameters[LOG_RATE + name]) for name in names}


def _context_weight_shape(inner: InnerSettings, spec: PolicySpec) -> tuple[int, int]:
    return spec.hidden_sizes[0], inner.context_size
