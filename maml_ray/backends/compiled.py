"""Compute the meta-gradient on a CPU with the compiled kernels, one task per call.

The kernels end at log-probabilities: the outer loss and its gradient with respect to these come
from the objective's one definition (:mod:`~maml_ray.maml.losses`), and the kernels pull that
gradient back to the meta-parameters.

Axes: N tasks, Q parameters of the policy, K episodes, T time steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from maml_ray.backends.base import Backend, FisherProduct
from maml_ray.backends.compiled_inner import (
    Array,
    kernel_config,
    ravel,
    ravel_rates,
    single_threaded_blas,
    supports_inner,
    unravel,
)
from maml_ray.backends.tensor_tree import ravel as ravel_tensors
from maml_ray.backends.tensor_tree import unravel as unravel_tensors
from maml_ray.config.settings import InnerSettings, OuterSettings
from maml_ray.kernels import fisher, inner_step
from maml_ray.kernels import meta_gradient as kernels
from maml_ray.kernels.inner_step import InnerStep, KernelConfig
from maml_ray.kernels.meta_gradient import QueryPass
from maml_ray.kernels.types import Gaussian, Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters, to_torch
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import outer_objective
from maml_ray.maml.meta_objective import (
    Diagnostics,
    MetaBatch,
    mean_diagnostics,
    mean_entropy,
    ratio_stats,
)
from maml_ray.maml.meta_parameters import LOG_RATE, initial_meta_parameters
from maml_ray.policies.spec import PolicySpec

Arrays = TypeVar("Arrays", Samples[Array], Gaussian[Array])

LOSS, INNER_KL, QUERY_KL = range(3)
"""Columns of the per-task statistics that the kernels compute."""


@dataclass(frozen=True)
class _Problem:
    """A meta-batch and the parameters as the kernels take them: arrays that share the tensors.

    Attributes:
        config: sizes, inner objective and order.
        params: (Q,) of the policy.
        rates: (Q,) inner rates.
        support, support_behavior: samples and behavior policies of each inner step, (N, ...).
        query, query_behavior: of the query phase, (N, ...).
    """

    config: KernelConfig
    params: Array
    rates: Array
    support: tuple[Samples[Array], ...]
    support_behavior: tuple[Gaussian[Array], ...]
    query: Samples[Array]
    query_behavior: Gaussian[Array]

    def adapt(self, task: int) -> tuple[list[InnerStep], Array]:
        """Return a task's inner steps, and its adapted parameters (Q,)."""
        return _adapt(self.config, self.params, self.rates, _rows(self.support, task))


class CompiledBackend(Backend):
    """Compute Gaussian policies' meta-gradients task by task, without Python's lock."""

    tasks_are_independent = True

    @staticmethod
    def supports(inner: InnerSettings, outer: OuterSettings, spec: PolicySpec) -> bool:
        """Return whether policy and inner objective have kernels, and E-MAML's term is off."""
        return supports_inner(inner, spec) and outer.e_maml_coefficient == 0.0

    def value(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics]:
        """Return the meta-loss () and its diagnostics."""
        loss, diagnostics, _ = self._evaluate(parameters, batch, order, with_grads=False)
        return loss, diagnostics

    def value_and_grad(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics, Parameters]:
        """Return the meta-loss (), its diagnostics and its gradient by name."""
        loss, diagnostics, grads = self._evaluate(parameters, batch, order)
        return loss, diagnostics, self._mean_by_name(parameters, *grads)

    def per_task_grads(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Tensor:
        """Return the meta-gradient (N, P) of every task."""
        *_, grads = self._evaluate(parameters, batch, order)
        tasks = range(len(batch.task_advantage))
        rows = [self._mean_by_name(parameters, *(part[n : n + 1] for part in grads)) for n in tasks]
        return torch.stack([ravel_tensors(row.values()) for row in rows])

    def fisher_product(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> FisherProduct:
        """Return the product with the Hessian of the adapted policies' mean KL at zero."""
        problem, tasks = self._problem(parameters, batch, order), len(batch.task_advantage)
        config, rates = problem.config, problem.rates
        paths: dict[int, tuple[list[InnerStep], Array]] = {}

        def adapt(n: int) -> None:
            paths[n] = problem.adapt(n)

        with single_threaded_blas():
            self.microbatcher.for_each_task(tasks, adapt)

        def product(vector: Tensor) -> Tensor:
            by_name = _arrays(unravel_tensors(vector, parameters))
            tangent, rate_tangent = ravel(self.spec, by_name), np.zeros_like(rates)
            if self.inner.learn_inner_rates:
                log_rates = {name: by_name[LOG_RATE + name] for name in self.spec.shapes()}
                rate_tangent = rates * ravel(self.spec, log_rates)
            grads, rate_grads = np.zeros((2, tasks, len(tangent)), tangent.dtype)

            def multiply(n: int) -> None:
                steps, adapted = paths[n]
                support, behavior = _rows(problem.support, n), _rows(problem.support_behavior, n)
                pushed = tangent
                for step, samples in zip(steps, support, strict=True):
                    pushed = inner_step.step_jvp(config, step, samples, rates, pushed, rate_tangent)
                adjoint = fisher.fisher_product(config, adapted, _row(problem.query, n), pushed)
                grads[n], rate_grads[n] = _pull_back(
                    config, steps, support, behavior, rates, adjoint, 0.0
                )

            with single_threaded_blas():
                self.microbatcher.for_each_task(tasks, multiply)
            return ravel_tensors(self._mean_by_name(parameters, grads, rate_grads * rates).values())

        return product

    def behavior_policies(
        self,
        parameters: Parameters,
        support: tuple[Samples[Tensor], ...],
        query: Samples[Tensor],
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        """Return the action distributions, without a graph, that ``parameters`` lead to."""
        config, params, rates = self._kernel_arguments(parameters, "first")
        (tasks, size, _), steps = query.observations.shape, len(support)
        means = np.empty((steps + 1, tasks, size, self.spec.action_size), params.dtype)
        log_stds = np.empty((steps + 1, tasks, self.spec.action_size), params.dtype)
        support_arrays = tuple(_samples_arrays(samples) for samples in support)
        query_arrays = _samples_arrays(query)

        def evaluate(n: int) -> None:
            path, adapted = _adapt(config, params, rates, _rows(support_arrays, n))
            last = kernels.evaluate_query(config, adapted, _row(query_arrays, n))
            for k, step in enumerate(path):
                means[k, n] = step.mean.reshape(size, -1)
                log_stds[k, n] = inner_step.clamped_log_std(config, step.params)
            means[steps, n], log_stds[steps, n] = last.mean.reshape(size, -1), last.log_std

        with single_threaded_blas():
            self.microbatcher.for_each_task(tasks, evaluate)
        *before, adapted = (
            Gaussian(torch.from_numpy(means[k]), torch.from_numpy(log_stds[k]))
            for k in range(steps + 1)
        )
        return tuple(before), adapted

    def warm_up(self) -> None:
        """Compile the kernels, or load them from their cache."""
        rng = np.random.default_rng(0)
        parameters = to_torch(initial_meta_parameters(self.spec, self.inner, rng))
        samples = Samples(
            observations=torch.zeros(1, 1, self.spec.observation_size),
            actions=torch.zeros(1, 1, self.spec.action_size),
            log_probs=torch.zeros(1, 1, 1),
            advantages=torch.zeros(1, 1, 1),
            weights=torch.ones(1, 1, 1),
        )
        support = (samples,) * self.inner.steps
        policies = self.behavior_policies(parameters, support, samples)
        batch = MetaBatch(support, policies[0], samples, policies[1], torch.zeros(1))
        self.value_and_grad(parameters, batch, "second")
        if outer_objective(self.outer.objective).uses_trust_region:
            self.value(parameters, batch, "second")
            product = self.fisher_product(parameters, batch, "second")
            product(ravel_tensors(parameters.values()))

    def _evaluate(
        self, parameters: Parameters, batch: MetaBatch, order: Order, *, with_grads: bool = True
    ) -> tuple[Tensor, Diagnostics, tuple[Array, Array]]:
        """Return loss, diagnostics, and the gradients (N, Q) by the policy and by log rates."""
        problem = self._problem(parameters, batch, order)
        tasks, dtype = len(batch.task_advantage), problem.params.dtype
        stats = np.empty((tasks, 3), dtype)
        log_probs = torch.empty_like(batch.query.log_probs)
        entropies = torch.empty(tasks, dtype=log_probs.dtype)
        grads, rate_grads = np.empty((2, tasks, len(problem.params)), dtype)

        def evaluate(n: int) -> None:
            steps, adapted = problem.adapt(n)
            query = _row(problem.query, n)
            support, behavior = _rows(problem.support, n), _rows(problem.support_behavior, n)
            last = kernels.evaluate_query(problem.config, adapted, query)
            log_probs[n] = torch.from_numpy(last.log_probs).reshape(log_probs[n].shape)
            samples = Samples(*(field[n] for field in batch.query))
            loss, log_prob_grads = self._loss_and_grad(log_probs[n], samples)
            inner_kl, coefficient = self._inner_kl(problem, steps, support, behavior)
            stats[n, LOSS] = loss + coefficient * inner_kl
            stats[n, INNER_KL] = inner_kl
            stats[n, QUERY_KL] = kernels.query_kl(last, _row(problem.query_behavior, n), query)
            entropies[n] = _entropy(last, samples)
            if with_grads:
                adjoint = kernels.query_vjp(problem.config, adapted, query, last, log_prob_grads)
                grads[n], rate_grads[n] = _pull_back(
                    problem.config, steps, support, behavior, problem.rates, adjoint, coefficient
                )

        with single_threaded_blas():
            self.microbatcher.for_each_task(tasks, evaluate)
        clip_fraction, max_ratio_error = ratio_stats(log_probs, batch.query, self.outer.clip)
        columns = torch.from_numpy(stats)
        diagnostics = Diagnostics(
            inner_kl=columns[:, INNER_KL],
            query_kl=columns[:, QUERY_KL],
            clip_fraction=clip_fraction,
            max_ratio_error=max_ratio_error,
            entropy=entropies,
        )
        loss = columns[:, LOSS].mean()
        return loss, mean_diagnostics(diagnostics), (grads, rate_grads * problem.rates)

    def _loss_and_grad(self, log_probs: Tensor, samples: Samples[Tensor]) -> tuple[float, Array]:
        """Return one task's outer loss, and its gradient (S,) with respect to log-probabilities."""
        definition = outer_objective(self.outer.objective)
        leaf = log_probs.detach().requires_grad_()
        with torch.enable_grad():
            loss = definition.loss(leaf, samples, self.outer)
        (grads,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
        return loss.item(), grads.reshape(-1).numpy()

    def _inner_kl(
        self,
        problem: _Problem,
        steps: Sequence[InnerStep],
        support: Sequence[Samples[Array]],
        behavior: Sequence[Gaussian[Array]],
    ) -> tuple[float, float]:
        """Return the mean inner KL of a task, and its weight in the loss."""
        penalized = outer_objective(self.outer.objective).penalizes_inner_kl
        kls = [
            kernels.support_kl(problem.config, *one)
            for one in zip(steps, behavior, support, strict=True)
        ]
        mean = sum(kls) / max(len(kls), 1)
        return mean, self.outer.inner_kl_coefficient if penalized else 0.0

    def _problem(self, parameters: Parameters, batch: MetaBatch, order: Order) -> _Problem:
        return _Problem(
            *self._kernel_arguments(parameters, order),
            support=tuple(_samples_arrays(samples) for samples in batch.support),
            support_behavior=tuple(_gaussian_arrays(policy) for policy in batch.support_behavior),
            query=_samples_arrays(batch.query),
            query_behavior=_gaussian_arrays(batch.query_behavior),
        )

    def _kernel_arguments(
        self, parameters: Parameters, order: Order
    ) -> tuple[KernelConfig, Array, Array]:
        values = _arrays(parameters)
        config = kernel_config(self.inner, self.spec, second_order=order == "second")
        rates = ravel_rates(self.inner, self.spec, values)
        return config, ravel(self.spec, values), rates

    def _mean_by_name(
        self, parameters: Parameters, grads: Array, log_rate_grads: Array
    ) -> Parameters:
        """Average gradients (N, Q) over tasks, by name in the order of ``parameters``."""
        mean: dict[str, Array] = unravel(self.spec, grads.mean(axis=0))
        if self.inner.learn_inner_rates:
            rates = unravel(self.spec, log_rate_grads.mean(axis=0))
            mean |= {LOG_RATE + name: value for name, value in rates.items()}
        return {name: torch.from_numpy(mean[name]) for name in parameters}


def _adapt(
    config: KernelConfig, params: Array, rates: Array, support: Sequence[Samples[Array]]
) -> tuple[list[InnerStep], Array]:
    """Return a task's inner steps, and its adapted parameters (Q,)."""
    steps: list[InnerStep] = []
    for samples in support:
        steps.append(inner_step.take_step(config, params, rates, samples))
        params = steps[-1].adapted
    return steps, params


def _pull_back(
    config: KernelConfig,
    steps: Sequence[InnerStep],
    support: Sequence[Samples[Array]],
    behavior: Sequence[Gaussian[Array]],
    rates: Array,
    adjoint: Array,
    kl_coefficient: float,
) -> tuple[Array, Array]:
    """Pull the gradient (Q,) at the adapted parameters back through a task's inner steps.

    Returns:
        Gradients (Q,) with respect to the meta-parameters, and to the inner rates.
    """
    rate_grads = np.zeros_like(rates)
    per_step = kl_coefficient / max(len(steps), 1)
    for step, samples, policy in reversed(list(zip(steps, support, behavior, strict=True))):
        adjoint, by_rates = inner_step.step_vjp(
            config, step, samples, rates, adjoint, per_step, policy
        )
        rate_grads += by_rates
    return adjoint, rate_grads


def _entropy(query: QueryPass, samples: Samples[Tensor]) -> Tensor:
    return mean_entropy(
        Gaussian(torch.from_numpy(query.mean), torch.from_numpy(query.log_std)), samples
    )


def _arrays(parameters: Parameters) -> dict[str, Array]:
    return {name: _array(value) for name, value in parameters.items()}


def _samples_arrays(samples: Samples[Tensor]) -> Samples[Array]:
    return Samples(*(_array(field) for field in samples))


def _gaussian_arrays(policy: ActionDistribution) -> Gaussian[Array]:
    assert isinstance(policy, Gaussian)  # a discrete policy is not supported
    return Gaussian(*(_array(field) for field in policy))


def _array(values: Tensor) -> Array:
    array: Array = values.detach().contiguous().numpy()
    return array


def _row(arrays: Arrays, n: int) -> Arrays:
    return type(arrays)(*(field[n] for field in arrays))


def _rows(phases: tuple[Arrays, ...], n: int) -> list[Arrays]:
    return [_row(phase, n) for phase in phases]
