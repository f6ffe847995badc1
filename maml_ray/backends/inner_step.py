"""Adapt a policy in NumPy, without a graph, as rollout workers and agents do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from maml_ray.backends.compiled_inner import compiled_inner_step, supports_inner
from maml_ray.backends.context_shift import ContextShift
from maml_ray.common.normalization import Normalizer
from maml_ray.config.sections import AdvantageSettings, InnerSettings
from maml_ray.policies.context import CONTEXT, with_context
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.samples import Support, make_support
from maml_ray.rollouts.trajectories import Trajectories

InnerStep = Callable[[Mapping[str, NDArray[np.float32]], Support, int], NumpyParameters]
"""From meta-parameters, one task's support data and the number of steps taken before to the
parameters after a step, with the context if there is one."""

_BLAS = ThreadpoolController()  # of NumPy


def make_inner_step(inner: InnerSettings, spec: PolicySpec) -> InnerStep:
    """Return the inner step: by compiled kernels, or by autograd if these do not support it."""
    if inner.parameters == "context":
        return partial(_context_step, inner, spec)
    step: Callable[..., NumpyParameters] = compiled_inner_step
    if not supports_inner(inner, spec):
        # Imported only now: without PyTorch a process starts sooner and takes half the memory.
        from maml_ray.backends.autograd import autograd_inner_step

        step = autograd_inner_step

    def inner_step(
        parameters: Mapping[str, NDArray[np.float32]], support: Support, steps_before: int
    ) -> NumpyParameters:
        return {**parameters, **step(inner, spec, parameters, support)}

    return inner_step


def _context_step(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    support: Support,
    steps_before: int,
) -> NumpyParameters:
    """Return meta-parameters with the context ``rate * mean of the gradients of all steps``."""
    context = ContextShift.after(inner, spec, parameters, np.asarray(support)).context
    if steps_before:
        context = (steps_before * parameters[CONTEXT] + context) / np.float32(steps_before + 1)
    return with_context(spec, parameters, context)


def adapt_policy(
    inner: InnerSettings,
    advantages: AdvantageSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    support: Trajectories,
    normalizer: Normalizer | None,
    steps_before: int = 0,
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
        steps_before: inner steps that led to ``parameters``.
    """
    step = make_inner_step(inner, spec)
    with _BLAS.limit(limits=1, user_api="blas"):  # a baseline rounds as in a rollout worker
        data = make_support(inner, advantages, support, normalizer)
        return step(parameters, data, steps_before)
