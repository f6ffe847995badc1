"""Compute the meta-gradient by autograd: for every policy and objective, and the definition.

All tasks of a chunk go through one vectorized call (``torch.func.vmap``). Axes: N tasks, P
meta-parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.backends.base import Backend, FisherProduct, Linearization
from maml_ray.backends.microbatch import Microbatcher
from maml_ray.backends.tensor_tree import ravel, unravel
from maml_ray.config.sections import InnerSettings, OuterSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml import inner_loop
from maml_ray.maml.adaptation import adapt_to_task
from maml_ray.maml.distributions import (
    ActionDistribution,
    Parameters,
    distribution,
    fisher_product,
    samples_to_torch,
    to_numpy,
    to_torch,
)
from maml_ray.maml.inner_loop import Order, plain_gradient
from maml_ray.maml.meta_objective import (
    Diagnostics,
    MetaBatch,
    MetaObjective,
    adapted_query_policy,
    meta_loss,
)
from maml_ray.policies.spec import NumpyParameters, PolicySpec

ChunkResult = tuple[int, Tensor, Diagnostics, Parameters]
"""Of a chunk: number of tasks, mean loss, mean diagnostics, mean gradient (or none)."""


class AutogradBackend(Backend):
    """Differentiate :func:`~maml_ray.maml.meta_objective.meta_loss`."""

    tasks_are_independent = False

    @staticmethod
    def supports(inner: InnerSettings, outer: OuterSettings, spec: PolicySpec) -> bool:
        """Return True."""
        return True

    def value(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics]:
        """Return the meta-loss () and its diagnostics."""

        @torch.no_grad()  # per thread, so within the function
        def of_chunk(chunk: MetaBatch) -> ChunkResult:
            loss, diagnostics = meta_loss(self._objective(order), parameters, chunk)
            return len(chunk.task_advantage), loss, diagnostics, {}

        loss, diagnostics, _ = _mean(self.microbatcher.map_chunks(of_chunk, batch))
        return loss, diagnostics

    def value_and_grad(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics, Parameters]:
        """Return the meta-loss (), its diagnostics and its gradient by name."""
        of_chunk = partial(_value_and_grad, self._objective(order), parameters)
        return _mean(self.microbatcher.map_chunks(of_chunk, batch))

    def per_task_grads(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Tensor:
        """Return the meta-gradient (N, P) of every task."""

        def of_chunk(chunk: MetaBatch) -> Tensor:
            of_task = partial(_value_and_grad, self._objective(order), parameters)
            results = Microbatcher(1).map_chunks(of_task, chunk)
            return torch.stack([ravel(gradient.values()) for *_, gradient in results])

        return self.microbatcher.map_concat(of_chunk, batch)

    def linearize(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Linearization:
        """Return what a trust region needs to know of the objective at ``parameters``."""
        loss, diagnostics, gradient = self.value_and_grad(parameters, batch, order)
        product = self._fisher_product(parameters, batch, order)
        return Linearization(loss, diagnostics, gradient, product)

    def _fisher_product(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> FisherProduct:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        objective, microbatcher = self._objective(order), self.microbatcher

        def of_chunk(chunk: MetaBatch) -> FisherProduct:
            share = len(chunk.task_advantage) / len(batch.task_advantage)
            unweighted = _fisher_product(objective, leaves, chunk)
            return lambda vector: share * unweighted(vector)

        if microbatcher.must_recompute(batch):
            return lambda vector: _sum(
                microbatcher.map_chunks(lambda chunk: of_chunk(chunk)(vector), batch)
            )
        products = microbatcher.map_chunks(of_chunk, batch)
        return lambda vector: _sum(
            microbatcher.run([partial(product, vector) for product in products])
        )

    def behavior_policies(
        self,
        parameters: Parameters,
        support: tuple[Samples[Tensor], ...],
        query: Samples[Tensor],
        context_gradient: Tensor,
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        """Return the action distributions, without a graph, that ``parameters`` lead to."""
        frozen = {name: value.detach() for name, value in parameters.items()}

        def of_task(
            support: tuple[Samples[Tensor], ...], query: Samples[Tensor], context_gradient: Tensor
        ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
            adapted, before = adapt_to_task(
                self.inner, self.spec, frozen, support, context_gradient, order="first"
            )
            return before, distribution(self.spec, adapted, query.observations)

        @torch.no_grad()
        def of_chunk(
            phases: tuple[tuple[Samples[Tensor], ...], Samples[Tensor], Tensor],
        ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
            policies: tuple[tuple[ActionDistribution, ...], ActionDistribution]
            policies = torch.func.vmap(of_task)(*phases)
            return policies

        return self.microbatcher.map_concat(of_chunk, (support, query, context_gradient))

    def warm_up(self) -> None:
        """Make PyTorch import what its function transforms need, about a second."""
        inner_loop.warm_up()


def _value_and_grad(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch
) -> ChunkResult:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss, diagnostics = meta_loss(objective, leaves, batch)
    gradient = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    named = dict(zip(leaves, gradient, strict=True))
    return len(batch.task_advantage), loss.detach(), diagnostics, named


def _mean(results: Sequence[ChunkResult]) -> tuple[Tensor, Diagnostics, Parameters]:
    """Average the results of chunks, weighted by their numbers of tasks."""
    if len(results) == 1:
        return results[0][1:]
    tasks = sum(count for count, *_ in results)
    shares = [count / tasks for count, *_ in results]

    def mean(values: Sequence[Tensor]) -> Tensor:
        total = shares[0] * values[0]
        for share, value in zip(shares[1:], values[1:], strict=True):
            total = total + share * value
        return total

    diagnostics = [one for _, _, one, _ in results]
    averaged = Diagnostics(*(mean(field) for field in zip(*diagnostics, strict=True)))
    largest = torch.stack([one.max_ratio_error for one in diagnostics]).max()
    gradients = [gradient for *_, gradient in results]
    return (
        mean([loss for _, loss, _, _ in results]),
        averaged._replace(max_ratio_error=largest),
        {name: mean([gradient[name] for gradient in gradients]) for name in gradients[0]},
    )


def _fisher_product(
    objective: MetaObjective, leaves: Parameters, batch: MetaBatch
) -> FisherProduct:
    """Return the product of one chunk.

    ``J^T u`` is linear in ``u``, so its derivative is ``J``: two backward passes a product, through
    graphs that are built once.
    """
    tensors = list(leaves.values())
    weights = batch.query.weights.flatten(start_dim=1) / len(batch.task_advantage)
    outputs = torch.func.vmap(lambda task: adapted_query_policy(objective, leaves, task))(batch)
    kind = type(outputs)
    probes = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(
        outputs, tensors, probes, create_graph=True, materialize_grads=True
    )
    policy = kind(*(output.detach() for output in outputs))

    def product(vector: Tensor) -> Tensor:
        tangents = torch.autograd.grad(
            pulled,
            probes,
            list(unravel(vector, leaves).values()),
            retain_graph=True,
            materialize_grads=True,
        )
        weighted = torch.func.vmap(fisher_product)(policy, kind(*tangents), weights)
        return ravel(
            torch.autograd.grad(
                outputs, tensors, weighted, retain_graph=True, materialize_grads=True
            )
        )

    return product


def _sum(vectors: list[Tensor]) -> Tensor:
    return torch.stack(vectors).sum(dim=0)


def autograd_inner_step(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    samples: Samples[NDArray[np.float32]],
) -> NumpyParameters:
    """Return the policy's parameters after one inner step on one task.

    Args:
        inner: settings of the inner loop, without a context.
        spec: the policy's sizes.
        parameters: meta-parameters.
        samples: of the support data.
    """
    theta = to_torch(parameters)
    support = (samples_to_torch(samples),)
    with _one_thread():
        adapted, _ = adapt_to_task(
            inner, spec, theta, support, order="first", gradient_of=plain_gradient
        )
    return to_numpy(adapted)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: several would add in another order, and round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
