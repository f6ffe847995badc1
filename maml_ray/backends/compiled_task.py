"""Take one task's inner steps with the compiled kernels, and pull gradients back through them.

Axes: Q parameters of the policy, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maml_ray.backends.compiled_inner import Array
from maml_ray.kernels import inner_step
from maml_ray.kernels import meta_gradient as kernels
from maml_ray.kernels.inner_step import InnerStep, KernelConfig
from maml_ray.kernels.meta_gradient import QueryPass
from maml_ray.kernels.types import Gaussian, Samples


class ForwardPass(NamedTuple):
    """A task's inner steps, its adapted parameters (Q,), and their pass over its query samples."""

    steps: Sequence[InnerStep]
    adapted: Array
    query: QueryPass


class CompiledTask(NamedTuple):
    """One task's data and the parameters as the kernels take them: arrays that share the tensors.

    Attributes:
        config: sizes, inner objective and order.
        params: (Q,) of the policy before the inner steps; with a context after them.
        rates: (Q,) inner rates.
        support, support_behavior: samples and behavior policy of each inner step.
        query, query_behavior: of the query phase.
    """

    config: KernelConfig
    params: Array
    rates: Array
    support: Sequence[Samples[Array]]
    support_behavior: Sequence[Gaussian[Array]]
    query: Samples[Array]
    query_behavior: Gaussian[Array]

    def adapt(self) -> tuple[list[InnerStep], Array]:
        """Return the inner steps, and the adapted parameters (Q,)."""
        return take_steps(self.config, self.params, self.rates, self.support)

    def forward(self) -> ForwardPass:
        """Adapt, and evaluate the query samples."""
        steps, adapted = self.adapt()
        query = kernels.evaluate_query(self.config, adapted, self.query)
        return ForwardPass(steps, adapted, query)

    def stats(self, run: ForwardPass, clip: float) -> tuple[float, ...]:
        """Return the fields of ``Diagnostics``, in their order."""
        phases = zip(run.steps, self.support_behavior, self.support, strict=True)
        kls = [kernels.support_kl(self.config, *phase) for phase in phases]
        query = kernels.query_stats(run.query, self.query_behavior, self.query, clip)
        return sum(kls) / max(len(kls), 1), *query

    def backward(
        self, run: ForwardPass, log_prob_grads: Array, kl_coefficient: float
    ) -> tuple[Array, Array]:
        """Pull the loss's gradient (S,) by query log-probabilities back to the meta-parameters.

        Returns:
            Gradients (Q,) by the policy's parameters, and by the logarithms of the inner rates.
        """
        adjoint = kernels.query_vjp(self.config, run.adapted, self.query, run.query, log_prob_grads)
        return self.pull_back(run.steps, adjoint, kl_coefficient)

    def pull_back(
        self, steps: Sequence[InnerStep], adjoint: Array, kl_coefficient: float = 0.0
    ) -> tuple[Array, Array]:
        """Pull the gradient (Q,) at the adapted parameters back through the inner steps.

        Returns:
            Gradients (Q,) by the policy's parameters, and by the logarithms of the inner rates.
        """
        rate_grads = np.zeros_like(self.rates)
        per_step = kl_coefficient / max(len(steps), 1)
        for k in range(len(steps) - 1, -1, -1):
            adjoint, by_rates = inner_step.step_vjp(
                self.config,
                steps[k],
                self.support[k],
                self.rates,
                adjoint,
                per_step,
                self.support_behavior[k],
            )
            rate_grads += by_rates
        return adjoint, rate_grads * self.rates


def take_steps(
    config: KernelConfig, params: Array, rates: Array, support: Sequence[Samples[Array]]
) -> tuple[list[InnerStep], Array]:
    """Return a task's inner steps from ``params`` (Q,), and the parameters after them."""
    steps: list[InnerStep] = []
    for samples in support:
        steps.append(inner_step.take_step(config, params, rates, samples))
        params = steps[-1].adapted
    return steps, params
