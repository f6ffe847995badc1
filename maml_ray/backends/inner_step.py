"""Adapt a policy in NumPy, without a graph, as rollout workers and agents do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.compiled_inner import (
    compiled_inner_step,
    single_threaded_blas,
    supports_inner,
)
from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import AdvantageSettings, InnerSettings
from maml_ray.maml.meta_parameters import inner_rates
from maml_ray.policies.context import CONTEXT, moved_by
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.samples import Support, make_support
from maml_ray.rollouts.trajectories import Trajectories

InnerStep = Callable[[Mapping[str, NDArray[np.float32]], Support], NumpyParameters]
"""From meta-parameters and one task's support data to these after a step, with the context if any.
"""


def make_inner_step(inner: InnerSettings, spec: PolicySpec) -> InnerStep:
    """Return the inner step: by compiled kernels, or by autograd if these do not support it."""
    step: Callable[..., NumpyParameters]
    if inner.parameters == "context":
        step = _context_step
    elif supports_inner(inner, spec):
        step = compiled_inner_step
    else:  # imported only now: without PyTorch a process starts sooner and takes half the memory
        from maml_ray.backends.autograd import autograd_inner_step as step

    def inner_step(
        parameters: Mapping[str, NDArray[np.float32]], support: Support
    ) -> NumpyParameters:
        return {**parameters, **step(inner, spec, parameters, support)}

    return inner_step


def _context_step(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    gradient: NDArray[np.float32],
) -> NumpyParameters:
    """Return meta-parameters after a step of the context along ``gradient`` (C,)."""
    with np.errstate(over="ignore"):  # a rate that overflows is detected by the step's result
        change = inner_rates(inner, spec, parameters, np.exp)[CONTEXT] * gradient
    return moved_by(spec, parameters, change)


def adapt_policy(
    inner: InnerSettings,
    advantages: AdvantageSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    support: Trajectories,
    normalizer: Normalizer | None,
) -> NumpyParameters:
    """Return meta-parameters after one inner step on ``support``, with the context if any.

    Args:
        inner: settings of the inner loop.
        advantages: how advantages are computed from rewards.
        spec: the policy's sizes.
        parameters: meta-parameters, with whose policy ``support`` was collected; after earlier
            inner steps also the context, if there is one.
        support: trajectories of one task.
        normalizer: of observations, as the policy used it.
    """
    step = make_inner_step(inner, spec)
    with single_threaded_blas():  # rounds as in a rollout worker
        estimates = compute_advantages(support, advantages)
        return step(parameters, make_support(inner, support, estimates, normalizer))
