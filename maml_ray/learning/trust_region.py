"""Update meta-parameters by a natural-gradient step within a trust region: MAML-TRPO.

The step of a given KL is found by conjugate gradient, and shortened until the loss falls and the KL
holds (Schulman et al. 2015, https://arxiv.org/abs/1502.05477, appendix C; as the outer step of
MAML: Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.3).

Axes: P meta-parameters, as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maml_ray.backends.tensor_tree import ravel, unravel
from maml_ray.config.sections import TrustRegionSettings
from maml_ray.learning.optimizer import OuterOptimizer, UpdateResult
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import project
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(product: Product, target: Tensor, *, iterations: int) -> Tensor:
    """Return ``x`` (P,) with ``product(x)`` close to ``target`` (P,).

    Hestenes and Stiefel 1952, for a positive definite product. Stops early once the residual is
    negligible, or at a direction without positive curvature, which rounding or a wrong product
    cause.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    negligible = 1e-10 * float(squared)
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        if not float(curvature) > 0.0:
            break
        length = squared / curvature
        solution = solution + length * direction
        residual = residual - length * image
        squared, before = residual @ residual, squared
        if float(squared) <= negligible:
            break
        direction = residual + (squared / before) * direction
    return solution


def natural_step(gradient: Tensor, product: Product, settings: TrustRegionSettings) -> Tensor:
    """Return the step (P,) down ``gradient`` (P,) whose KL is ``max_kl`` to second order.

    ``-sqrt(2 max_kl / (g F^-1 g)) F^-1 g``, with ``F`` the damped Fisher matrix, given by its
    ``product`` with a vector. Zero if the gradient is zero or the result is not finite.
    """

    def damped(vector: Tensor) -> Tensor:
        return product(vector) + settings.damping * vector

    direction = conjugate_gradient(damped, gradient, iterations=settings.cg_iterations)
    # That of the direction and its product, since the residual is orthogonal to the direction.
    curvature = float(direction @ gradient)
    if not (math.isfinite(curvature) and curvature > 0.0):
        return torch.zeros_like(gradient)
    return -math.sqrt(2.0 * settings.max_kl / curvature) * direction


class TrustRegionOptimizer(OuterOptimizer):
    """Take one natural-gradient step on the whole meta-batch; there is no state between updates."""

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> UpdateResult:
        """Take a step that lowers the loss and keeps ``max_kl``, or none."""
        region, backend, parameters = (
            self._settings.outer.trust_region,
            self._backend,
            self._parameters,
        )
        loss, before, by_name, product = backend.linearize(parameters, batch, order)
        gradient = ravel(by_name.values())
        step = natural_step(gradient, product, region)
        del product  # the candidates need its memory
        start = ravel(value.detach() for value in parameters.values())
        after, lowest, taken = before, float(loss), 0
        for backtracks in range(region.max_backtracks if bool(step.any()) else 0):
            self._assign(start + region.backtrack_ratio**backtracks * step)
            # The inner steps are repeated from the candidate, on the same support data.
            candidate_loss, diagnostics = backend.value(parameters, batch, order)
            # NaN fails both comparisons.
            if float(candidate_loss) < lowest and float(diagnostics.query_kl) <= region.max_kl:
                after, lowest, taken = diagnostics, float(candidate_loss), 1
                break
        else:
            self._assign(start)
        return UpdateResult(
            before=before,
            after=after,
            loss=lowest,
            gradient_norm=float(gradient.norm()),
            steps=taken,
            learning_rate=None,
        )

    def state(self) -> OptimizerState:
        """Return an empty state."""
        return OptimizerState(0, {}, {})

    def load(self, state: OptimizerState) -> None:
        """Do nothing."""

    def _assign(self, vector: Tensor) -> None:
        with torch.no_grad():
            for name, value in unravel(vector, self._parameters).items():
                self._parameters[name].copy_(value)
        project(self._backend.spec, self._parameters)
