"""Compute how a context moves the policy, in NumPy, and its derivatives.

The definition, with PyTorch, is in :mod:`~maml_ray.maml.adaptation`. All inner steps of a task
lead to one context z, because the gradients g that they follow are data:

    z = rate * mean(g_1, g_2, ...)        shift = W tanh(z)

Each task is computed on its own, so that its bits do not depend on the tasks beside it.

Axes: U units of the first hidden layer, C numbers of the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.sections import InnerSettings
from maml_ray.maml.meta_parameters import LOG_RATE, inner_rates
from maml_ray.policies.context import CONTEXT, CONTEXT_WEIGHT
from maml_ray.policies.spec import PolicySpec

Array = NDArray[Any]


class ContextShift(NamedTuple):
    """The context of one task, and what it adds to the bias of the first hidden layer.

    Attributes:
        weight: W (U, C).
        context: z (C,).
    """

    weight: Array
    context: Array

    @classmethod
    def after(
        cls,
        inner: InnerSettings,
        spec: PolicySpec,
        parameters: Mapping[str, Array],
        gradient: Array,
    ) -> ContextShift:
        """Return the context after inner steps whose gradients have the mean ``gradient`` (C,).

        Args:
            inner: settings of the inner loop.
            spec: the policy's sizes.
            parameters: meta-parameters.
            gradient: see :func:`~maml_ray.rollouts.samples.context_gradient`.
        """
        with np.errstate(over="ignore"):  # a rate that overflows is detected by the update's result
            context = inner_rates(inner, spec, parameters, np.exp)[CONTEXT] * gradient
        return cls(parameters[CONTEXT_WEIGHT], context)

    def shift(self) -> Array:
        """Return W tanh(z), (U,)."""
        shift: Array = (self.weight * np.tanh(self.context)).sum(axis=1)
        return shift

    def jvp(self, tangent: Mapping[str, Array]) -> Array:
        """Push a tangent of the meta-parameters forward to the shift: (U,)."""
        after = np.tanh(self.context)
        by_weight = tangent[CONTEXT_WEIGHT] * after
        log_rates = tangent.get(LOG_RATE + CONTEXT, 0.0)
        by_rates = self.weight * (self._slope() * log_rates)
        pushed: Array = (by_weight + by_rates).sum(axis=1)
        return pushed

    def vjp(self, adjoint: Array) -> dict[str, Array]:
        """Pull an adjoint (U,) of the shift back to W and to the log rates, by name."""
        return {
            CONTEXT_WEIGHT: adjoint[:, None] * np.tanh(self.context),
            LOG_RATE + CONTEXT: self._slope() * (self.weight * adjoint[:, None]).sum(axis=0),
        }

    def _slope(self) -> Array:
        """Return the derivative of tanh(z) by the logarithms of the rates, (C,)."""
        return (1.0 - np.square(np.tanh(self.context))) * self.context
