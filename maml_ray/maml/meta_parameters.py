"""Name and initialize the meta-parameters: the policy's parameters and learned inner rates.

Both are in one dictionary, so that they are optimized, published and saved in the same way. A
learned rate (Meta-SGD, Li et al. 2017, https://arxiv.org/abs/1707.09835) is stored as its logarithm
under ``log_inner_rate/<parameter>``, with the parameter's shape: it cannot become negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from maml_ray.config.settings import InnerSettings
from maml_ray.policies.spec import NumpyParameters, PolicySpec, initial_parameters

LOG_RATE = "log_inner_rate/"
Value = TypeVar("Value")


def initial_meta_parameters(
    spec: PolicySpec, inner: InnerSettings, rng: np.random.Generator
) -> NumpyParameters:
    """Return fresh meta-parameters; learned rates start at ``inner.learning_rate``."""
    parameters = initial_parameters(spec, rng)
    if inner.learn_inner_rates:
        start = math.log(inner.learning_rate)
        for name, value in list(parameters.items()):
            parameters[LOG_RATE + name] = np.full_like(value, start)
    return parameters


def meta_parameter_shapes(spec: PolicySpec, inner: InnerSettings) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every meta-parameter, in order."""
    shapes = spec.shapes()
    if inner.learn_inner_rates:
        shapes |= {LOG_RATE + name: shape for name, shape in spec.shapes().items()}
    return shapes


def policy_part(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """Return the policy's parameters, without learned rates."""
    return {name: value for name, value in parameters.items() if not name.startswith(LOG_RATE)}


def inner_rates(
    inner: InnerSettings, parameters: Mapping[str, Value], exp: Callable[[Value], Value]
) -> float | dict[str, Value]:
    """Return the inner rate: one number, or learned rates by the name of their parameter.

    Args:
        inner: settings of the inner loop.
        parameters: meta-parameters, as arrays or tensors.
        exp: the exponential function of these arrays or tensors.
    """
    if not inner.learn_inner_rates:
        return inner.learning_rate
    return {
        name.removeprefix(LOG_RATE): exp(value)
        for name, value in parameters.items()
        if name.startswith(LOG_RATE)
    }
