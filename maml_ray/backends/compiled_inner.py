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

from maml_ray.config.settings import InnerSettings
from maml_ray.kernels import inner_step
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.types import InnerRule, Samples, TaskState
from maml_ray.maml.meta_parameters import CONTEXT, CONTEXT_WEIGHT, LOG_RATE, inner_rates
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
    """Return the policy's parameters, and the context if there is one, after one inner step.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: meta-parameters; after earlier inner steps also the context, if there is one.
        samples: of one task's support data.
    """
    before, rule = task_state(spec, parameters), make_rule(inner, spec, parameters)
    # Copies: Ray's arrays are read-only, and the kernels would be compiled once more for these.
    support = Samples(*(np.array(field) for field in samples))
    config = kernel_config(inner, spec, second_order=False)
    with single_threaded_blas():
        after = inner_step.take_step(config, before, rule, support).after
    context = {CONTEXT: after.context} if inner.parameters == "context" else {}
    return {**unravel(spec, after.params), **context}


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


def task_state(spec: PolicySpec, parameters: Mapping[str, Array]) -> TaskState:
    """Return what inner steps on ``parameters``, or on a tangent of them, move: copies."""
    weight = _context_weight(spec, parameters)
    context = np.array(parameters.get(CONTEXT, np.zeros(weight.shape[1], weight.dtype)))
    return TaskState(ravel(spec, parameters), context)


def make_rule(inner: InnerSettings, spec: PolicySpec, parameters: Mapping[str, Array]) -> InnerRule:
    """Return the rule of the inner steps, which the kernels may keep."""
    with np.errstate(over="ignore"):  # a rate that overflows is detected by the update's result
        return _rule(spec, parameters, inner_rates(inner, spec, parameters, np.exp))


def rule_tangent(spec: PolicySpec, rule: InnerRule, tangent: Mapping[str, Array]) -> InnerRule:
    """Return the derivative of the rule along a tangent of the meta-parameters."""
    log_rates = {
        name.removeprefix(LOG_RATE): value
        for name, value in tangent.items()
        if name.startswith(LOG_RATE)
    }
    by_log_rates = _rule(spec, tangent, log_rates)
    return by_log_rates._replace(
        rates=rule.rates * by_log_rates.rates,
        context_rates=rule.context_rates * by_log_rates.context_rates,
    )


def _rule(
    spec: PolicySpec, parameters: Mapping[str, Array], rates: Mapping[str, float | Array]
) -> InnerRule:
    """Return the rule of these rates, 0 where there is none, and of the context's weights."""
    zero = task_state(spec, parameters)
    values = np.zeros_like(zero.params)
    for name, part in unravel(spec, values).items():
        part[...] = rates.get(name, 0.0)
    context_rates = np.full_like(zero.context, rates.get(CONTEXT, 0.0))
    return InnerRule(values, context_rates, _context_weight(spec, parameters))


def _context_weight(spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """Return the context's weights (U, C), copied; (U, 0) without a context."""
    if CONTEXT_WEIGHT in parameters:
        return np.array(parameters[CONTEXT_WEIGHT])
    first = next(iter(spec.shapes()))
    return np.empty((spec.shapes()[first][0], 0), parameters[first].dtype)


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
