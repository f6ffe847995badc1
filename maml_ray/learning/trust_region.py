"""The outer step by trust region: MAML-TRPO.

A natural-gradient step of a given KL, found by conjugate gradient, and shortened until the loss
falls and the KL holds (Schulman et al. 2015, https://arxiv.org/abs/1502.05477, appendix C; as the
outer step of MAML: Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.3).

Axes: P meta-parameters, as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from maml_ray.backends.analytic_gradient import analytic_fisher
from maml_ray.backends.compiled import compiled_fisher, goes_by_loops
from maml_ray.backends.coverage import is_covered
from maml_ray.backends.dispatch import meta_gradient, meta_value
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import TrustRegionSettings
from maml_ray.learning.optimizer import OuterOptimizer, OuterStep
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import Parameters, fisher_product, project
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, MetaObjective, adapted_query_policy

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(product: Product, target: Tensor, *, iterations: int) -> Tensor:
    """``x`` (P,) with ``product(x)`` close to ``target`` (P,), for a positive definite product.

    Hestenes and Stiefel 1952. Ends early where the residual has all but vanished, or where a
    direction has no positive curvature: rounding, or a product that is not what it should be.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    enough = 1e-10 * float(squared)
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        if not float(curvature) > 0.0:
            break
        length = squared / curvature
        solution = solution + length * direction
        residual = residual - length * image
        squared, before = residual @ residual, squared
        if float(squared) <= enough:
            break
        direction = residual + (squared / before) * direction
    return solution


def natural_step(gradient: Tensor, product: Product, settings: TrustRegionSettings) -> Tensor:
    """The step (P,) down ``gradient`` (P,) whose KL is ``max_kl`` to second order.

    ``-sqrt(2 max_kl / (g F^-1 g)) F^-1 g`` with ``F`` the damped Fisher matrix, given by its
    ``product`` with a vector. Zero where there is no gradient, or nothing finite comes of it.
    """

    def damped(vector: Tensor) -> Tensor:
        return product(vector) + settings.damping * vector

    direction = conjugate_gradient(damped, gradient, iterations=settings.cg_iterations)
    curvature = float(direction @ damped(direction))
    if not (math.isfinite(curvature) and curvature > 0.0):
        return torch.zeros_like(gradient)
    return -math.sqrt(2.0 * settings.max_kl / curvature) * direction


def fisher_of_adapted_policies(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> Product:
    """The Hessian of the mean KL of the adapted policies, at KL zero, as a product with a vector.

    ``J^T F J`` with ``J`` the derivative of the adapted policies' outputs at the query data with
    respect to the meta-parameters, inner steps included, and ``F`` the Fisher matrix of those
    outputs: exact, and no third derivative is needed.
    """
    if goes_by_loops(objective.settings, objective.spec, batch.credit.device):
        return _of_vectors(compiled_fisher(objective, parameters, batch, passes), parameters)
    by_hand = is_covered(objective.settings, objective.spec)
    kind = _fisher_by_hand if by_hand else _fisher_by_autograd

    def of_piece(piece: MetaBatch) -> Product:
        share = len(piece.credit) / len(batch.credit)
        unweighted = kind(objective, parameters, piece)
        return lambda vector: share * unweighted(vector)

    if passes.must_forget(batch):  # then each product goes through the inner steps again
        return lambda vector: _sum(passes.each(lambda piece: of_piece(piece)(vector), batch))
    pieces = passes.each(of_piece, batch)
    return lambda vector: _sum(passes.run([partial(piece, vector) for piece in pieces]))


def _fisher_by_hand(objective: MetaObjective, parameters: Parameters, batch: MetaBatch) -> Product:
    return _of_vectors(analytic_fisher(objective, parameters, batch), parameters)


def _of_vectors(by_name: Callable[[Parameters], Parameters], parameters: Parameters) -> Product:
    """A product of parameters as one of vectors."""
    leaves = list(parameters.values())

    def product(vector: Tensor) -> Tensor:
        pieces = by_name(dict(zip(parameters, _split(vector, leaves), strict=True)))
        return _joined(list(pieces.values()))

    return product


def _fisher_by_autograd(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> Product:
    """``J^T u`` is linear in ``u``, so its derivative is ``J``: two backward passes a product,
    through graphs that are built once."""
    leaves = list(parameters.values())
    tasks = batch.credit.shape[0]
    weights = batch.query.weights.flatten(start_dim=1) / tasks
    outputs = torch.func.vmap(lambda task: adapted_query_policy(objective, parameters, task)[0])(
        batch
    )
    kind = type(outputs)
    probes = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(outputs, leaves, probes, create_graph=True, materialize_grads=True)
    at = kind(*(output.detach() for output in outputs))

    def product(vector: Tensor) -> Tensor:
        pieces = _split(vector, leaves)
        moved = torch.autograd.grad(
            pulled, probes, pieces, retain_graph=True, materialize_grads=True
        )
        weighted = torch.func.vmap(fisher_product)(at, kind(*moved), weights)
        back = torch.autograd.grad(
            outputs, leaves, weighted, retain_graph=True, materialize_grads=True
        )
        return _joined(back)

    return product


class TrustRegionUpdate(OuterOptimizer):
    """One natural-gradient step on the whole meta-batch; remembers nothing between updates."""

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> OuterStep:
        """A step that lowers the loss and keeps ``max_kl``, or none."""
        limits, leaves = self._settings.outer.trust_region, list(self._parameters.values())
        objective = MetaObjective(self._settings, self._spec, order)
        told = (objective, self._parameters, batch, self._passes)
        loss, before, slopes = meta_gradient(*told)
        gradient = _joined(list(slopes.values()))
        product = fisher_of_adapted_policies(*told)
        step = natural_step(gradient, product, limits)
        start = _joined([leaf.detach() for leaf in leaves])
        after, lowest, taken = before, float(loss), 0
        for shortened in range(limits.max_backtracks if bool(step.any()) else 0):
            self._place(start + limits.backtrack_ratio**shortened * step)
            # The inner steps are redone from the candidate, with the same support data.
            tried, found = meta_value(*told)
            # NaN is neither lower nor within the bound.
            if float(tried) < lowest and float(found.query_kl) <= limits.max_kl:
                after, lowest, taken = found, float(tried), 1
                break
        else:
            self._place(start)
        return OuterStep(
            before=before,
            after=after,
            loss=lowest,
            gradient_norm=float(gradient.norm()),
            steps=taken,
            learning_rate=None,
        )

    def state(self) -> OptimizerState:
        """Nothing."""
        return OptimizerState(0, {}, {})

    def load(self, state: OptimizerState) -> None:
        """Nothing."""

    def _place(self, vector: Tensor) -> None:
        leaves = list(self._parameters.values())
        with torch.no_grad():
            for leaf, piece in zip(leaves, _split(vector, leaves), strict=True):
                leaf.copy_(piece)
        project(self._spec, self._parameters)


def _sum(vectors: list[Tensor]) -> Tensor:
    return torch.stack(vectors).sum(dim=0)


def _joined(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _split(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
