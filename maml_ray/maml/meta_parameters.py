"""What meta-training learns: the policy's parameters and, where asked, the inner rates.

Both live in one dictionary, so that they are optimized, published and saved alike. A learned rate
(Meta-SGD, Li et al. 2017, https://arxiv.org/abs/1707.09835) is kept as its logarithm under
``log_inner_rate/<parameter>``, one number for each of the parameter's: it cannot become negative.
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
    """Fresh parameters; learned rates begin at ``inner.learning_rate``."""
    parameters = initial_parameters(spec, rng)
    if inner.learn_inner_rates:
        start = math.log(inner.learning_rate)
        for name, value in list(parameters.items()):
            parameters[LOG_RATE + name] = np.full_like(value, start)
    return parameters


def meta_parameter_shapes(spec: PolicySpec, inner: InnerSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything that is learned, in order."""
    shapes = spec.shapes()
    if inner.learn_inner_rates:
        shapes |= {LOG_RATE + name: shape for name, shape in spec.shapes().items()}
    return shapes


def policy_part(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """The policy's own parameters, without learned rates."""
    return {name: value for name, value in parameters.items() if not name.startswith(LOG_RATE)}


def inner_rates(
    inner: InnerSettings, parameters: Mapping[str, Value], exp: Callable[[Value], Value]
) -> float | dict[str, Value]:
    """The inner rate: one number, or the learned ones by the name of their parameter.

    Args:
        inner: the inner loop's settings.
        parameters: all that is learned, as arrays or tensors.
        exp: the exponential of such.
    """
    if not inner.learn_inner_rates:
        return inner.learning_rate
    return {
        name.removeprefix(LOG_RATE): exp(value)
        for name, value in parameters.items()
        if name.startswith(LOG_RATE)
    }
