"""Take inner steps with the compiled kernels, on NumPy arrays and without PyTorch.

Axes: Q parameters of the policy, in the policy's own order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from maml_ray.config.sections import InnerSettings
from maml_ray.kernels import inner_step
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.types import Samples
from maml_ray.maml.meta_parameters import inner_rates
from maml_ray.policies.spec import PolicySpec

Array = NDArray[Any]
_BLAS = ThreadpoolController()  # created after the kernels' import, which loads their BLAS

_RATIO = {"ratio": True, "log_prob": False}
"""Inner objectives that the kernels know, and whether each is that of likelihood ratios."""


def supports_inner(inner: InnerSettings, spec: PolicySpec) -> bool:
    """Return whether the kernels can take these inner steps."""
    return not spec.discrete and inner.objective in _RATIO


def compiled_inner_step(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, Array],
    samples: Samples[Array],
) -> dict[str, Array]:
    """Return the policy's parameters after one inner step on one task.

    Args:
        inner: settings of the inner loop, without a context.
        spec: the policy's sizes.
        parameters: meta-parameters.
        samples: of the support data.
    """
    theta, rates = ravel(spec, parameters), ravel_rates(inner, spec, parameters)
    # Copies: Ray's arrays are read-only, and the kernels would be compiled once more for these.
    support = Samples(*(np.array(field) for field in samples))
    config = kernel_config(inner, spec, second_order=False)
    with single_threaded_blas():
        return unravel(spec, inner_step.take_step(config, theta, rates, support).adapted)


def kernel_config(inner: InnerSettings, spec: PolicySpec, *, second_order: bool) -> KernelConfig:
    """Return what the kernels need to know of settings and policy.

    Raises:
        KeyError: the kernels do not know the inner objective; see :func:`supports_inner`.
    """
    return KernelConfig(
        sizes=np.array((spec.observation_size, *spec.hidden_sizes, spec.action_size)),
        relu=spec.activation == "relu",
        min_log_std=spec.min_log_std,
        ratio=_RATIO[inner.objective],
        l2=inner.l2,
        second_order=second_order,
    )


def ravel_rates(inner: InnerSettings, spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """Return the inner rates (Q,); 0 for what inner steps leave as it is."""
    with np.errstate(over="ignore"):  # a rate that overflows is detected by the update's result
        by_name = inner_rates(inner, spec, parameters, np.exp)
        rates = np.zeros_like(ravel(spec, parameters))
        for name, part in unravel(spec, rates).items():
            part[...] = by_name.get(name, 0.0)
    return rates


def ravel(spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """Return the policy's parameters (Q,) in its own order, whatever the mapping's order."""
    return np.concatenate([parameters[name].reshape(-1) for name in spec.shapes()])


def unravel(spec: PolicySpec, values: Array) -> dict[str, Array]:
    """Split numbers (Q,) into the policy's parameters by name: views."""
    parameters: dict[str, Array] = {}
    start = 0
    for name, shape in spec.shapes().items():
        count = math.prod(shape)
        parameters[name] = values[start : start + count].reshape(shape)
        start += count
    return parameters


def single_threaded_blas() -> AbstractContextManager[Any]:
    """Compute matrix products on the calling thread: the kernels' blocks are too small to share.

    So the bits do not depend on how many threads a process may have.
    """
    limited: AbstractContextManager[Any] = _BLAS.limit(limits=1, user_api="blas")
    return limited
