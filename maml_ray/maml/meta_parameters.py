"""Name and initialize the meta-parameters: the policy's, and those of the inner steps.

All are in one dictionary, so that they are optimized, published and saved in the same way. Beside
the policy's parameters it may hold one of these:

- learned inner rates (Meta-SGD, Li et al. 2017, https://arxiv.org/abs/1707.09835), as logarithms
  under ``log_inner_rate/<parameter>``, with the parameter's shape: a rate cannot become negative;
- ``context_weight`` (U, C): weights from a context vector of C numbers to the U units of the first
  hidden layer (CAVIA, Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from maml_ray.config.settings import InnerSettings
from maml_ray.policies.spec import NumpyParameters, PolicySpec, initial_parameters

LOG_RATE = "log_inner_rate/"
CONTEXT_WEIGHT = "context_weight"
Value = TypeVar("Value")


def initial_meta_parameters(
    spec: PolicySpec, inner: InnerSettings, rng: np.random.Generator
) -> NumpyParameters:
    """Return fresh meta-parameters.

    Learned rates start at ``inner.learning_rate``, a context's weights as standard normal numbers,
    which are drawn last: the others do not depend on them.
    """
    parameters = initial_parameters(spec, rng)
    if inner.learn_inner_rates:
        start = math.log(inner.learning_rate)
        for name in adapted_names(inner, spec):
            parameters[LOG_RATE + name] = np.full_like(parameters[name], start)
    if inner.parameters == "context":
        shape = _context_shape(spec, inner)
        parameters[CONTEXT_WEIGHT] = rng.standard_normal(shape).astype(np.float32)
    return parameters


def meta_parameter_shapes(spec: PolicySpec, inner: InnerSettings) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every meta-parameter, in order."""
    shapes = spec.shapes()
    if inner.learn_inner_rates:
        shapes |= {LOG_RATE + name: shapes[name] for name in adapted_names(inner, spec)}
    if inner.parameters == "context":
        shapes[CONTEXT_WEIGHT] = _context_shape(spec, inner)
    return shapes


def adapted_names(inner: InnerSettings, spec: PolicySpec) -> tuple[str, ...]:
    """Return the names of the policy's parameters that take inner steps; none with a context."""
    if inner.parameters == "context":
        return ()
    names = tuple(spec.shapes())
    if inner.parameters == "head":
        return tuple(name for name in names if name.startswith(f"{spec.head}."))
    return names


def policy_part(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """Return the policy's parameters, without those of the inner steps."""
    return {
        name: value
        for name, value in parameters.items()
        if not (name.startswith(LOG_RATE) or name == CONTEXT_WEIGHT)
    }


def inner_rates(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, Value],
    exp: Callable[[Value], Value],
) -> dict[str, float | Value]:
    """Return the inner rate of each of the policy's parameters that takes inner steps, by name.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: meta-parameters, as arrays or tensors.
        exp: the exponential function of these arrays or tensors.
    """
    names = adapted_names(inner, spec)
    if not inner.learn_inner_rates:
        return dict.fromkeys(names, inner.learning_rate)
    return {name: exp(parameters[LOG_RATE + name]) for name in names}


def _context_shape(spec: PolicySpec, inner: InnerSettings) -> tuple[int, int]:
    return spec.hidden_sizes[0], inner.context_size
