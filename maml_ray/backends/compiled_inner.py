"""Take inner steps with the compiled kernels, on NumPy arrays and without PyTorch.

Axes: Q parameters of the policy as the kernels take them: see :func:`pack`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.sections import InnerSettings
from maml_ray.kernels import inner_step
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.layout import layer_views, network_length
from maml_ray.kernels.types import Samples
from maml_ray.maml.meta_parameters import inner_rates
from maml_ray.policies.spec import LOG_STD, PolicySpec

Array = NDArray[Any]

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
    theta, rates = pack(spec, parameters), pack_rates(inner, spec, parameters)
    # Copies: Ray's arrays are read-only, and the kernels would be compiled once more for these.
    support = Samples(*(np.array(field) for field in samples))
    config = kernel_config(inner, spec, second_order=False)
    adapted = inner_step.take_step(config, theta, rates, support).adapted
    return {name: view.copy() for name, view in unpack(spec, adapted).items()}


def kernel_config(inner: InnerSettings, spec: PolicySpec, *, second_order: bool) -> KernelConfig:
    """Return what the kernels need to know of settings and policy.

    Raises:
        KeyError: the kernels do not know the inner objective; see :func:`supports_inner`.
    """
    return KernelConfig(
        sizes=np.array(_sizes(spec)),
        relu=spec.activation == "relu",
        min_log_std=spec.min_log_std,
        ratio=_RATIO[inner.objective],
        l2=inner.l2,
        second_order=second_order,
    )


def pack_rates(inner: InnerSettings, spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """Return the inner rates (Q,); 0 for what inner steps leave as it is."""
    with np.errstate(over="ignore"):  # a rate that overflows is detected by the update's result
        by_name = inner_rates(inner, spec, parameters, np.exp)
        rates = np.zeros_like(pack(spec, parameters))
        for name, part in unpack(spec, rates).items():
            part[...] = by_name.get(name, 0.0)
    return rates


def pack(spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """Return the policy's parameters (Q,) as the kernels take them; whatever else there is, not.

    Q counts the padding of :mod:`~maml_ray.kernels.layout`.
    """
    length = network_length(_sizes(spec)) + spec.action_size
    packed = np.zeros(length, parameters[LOG_STD].dtype)
    for name, view in unpack(spec, packed).items():
        view[...] = parameters[name]
    return packed


def unpack(spec: PolicySpec, packed: Array) -> dict[str, Array]:
    """Return views by name of the policy's parameters (Q,), or of numbers that belong to them."""
    views: dict[str, Array] = {}
    for name, (weight, bias) in zip(
        spec.layer_names, layer_views(_sizes(spec), packed), strict=True
    ):
        views[f"{name}.weight"], views[f"{name}.bias"] = weight, bias
    views[LOG_STD] = packed[len(packed) - spec.action_size :]
    return views


def _sizes(spec: PolicySpec) -> tuple[int, ...]:
    return (spec.observation_size, *spec.hidden_sizes, spec.action_size)
