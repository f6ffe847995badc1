"""Compute the meta-gradient on a CPU with the compiled kernels, one task per call.

The kernels end at log-probabilities: the outer loss and its gradient with respect to these come
from the objective's one definition (:mod:`~maml_ray.maml.losses`), and the kernels pull that
gradient back to the meta-parameters.

Axes: N tasks, Q parameters of the policy as the kernels take them, K episodes, T time steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from maml_ray.backends.base import Backend, FisherProduct, Linearization
from maml_ray.backends.compiled_inner import (
    Array,
    kernel_config,
    pack,
    pack_rates,
    supports_inner,
    unpack,
)
from maml_ray.backends.compiled_task import CompiledTask, ForwardPass, take_steps
from maml_ray.backends.context_shift import ContextShift
from maml_ray.backends.tensor_tree import ravel, slice_rows, unravel
from maml_ray.config.sections import InnerSettings, OuterSettings
from maml_ray.kernels import fisher, inner_step
from maml_ray.kernels import meta_gradient as kernels
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.types import Gaussian, Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters, to_torch
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import outer_loss, outer_objective
from maml_ray.maml.meta_objective import (
    Diagnostics,
    MetaBatch,
    mean_diagnostics,
)
from maml_ray.maml.meta_parameters import LOG_RATE, initial_meta_parameters
from maml_ray.policies.context import CONTEXT, CONTEXT_WEIGHT, first_bias
from maml_ray.policies.spec import PolicySpec

Arrays = TypeVar("Arrays", Samples[Array], Gaussian[Array])

_MIN_GROUP = 8
"""Fewest tasks whose loss is evaluated together: most of the time is a call's, not a task's."""


class _Gradients(NamedTuple):
    """Gradients of N tasks by the policy's parameters and by the logarithms of the inner rates.

    Attributes:
        params, log_rates: (N, Q).
    """

    params: Array
    log_rates: Array

    @classmethod
    def zeros(cls, tasks: int, params: Array) -> _Gradients:
        """Return gradients to be filled in."""
        return cls(*np.zeros((2, tasks, len(params)), params.dtype))


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
        return loss, diagnostics, self._mean_by_name(parameters, batch.context_gradient, grads)

    def per_task_grads(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Tensor:
        """Return the meta-gradient (N, P) of every task."""
        *_, grads = self._evaluate(parameters, batch, order)
        tasks = range(len(batch.task_advantage))
        rows = [
            self._mean_by_name(
                parameters,
                batch.context_gradient[n : n + 1],
                _Gradients(*(part[n : n + 1] for part in grads)),
            )
            for n in tasks
        ]
        return torch.stack([ravel(row.values()) for row in rows])

    def linearize(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Linearization:
        """Return what a trust region needs to know of the objective at ``parameters``."""
        passes: dict[int, ForwardPass] = {}
        loss, diagnostics, grads = self._evaluate(parameters, batch, order, keep=passes)
        gradient = self._mean_by_name(parameters, batch.context_gradient, grads)
        product = self._fisher_product(parameters, batch, order, passes)
        return Linearization(loss, diagnostics, gradient, product)

    def _fisher_product(
        self,
        parameters: Parameters,
        batch: MetaBatch,
        order: Order,
        passes: Mapping[int, ForwardPass],
    ) -> FisherProduct:
        tasks = self._tasks(parameters, batch, order)
        shifts = self._context_shifts(_arrays(parameters), batch.context_gradient)

        def product(vector: Tensor) -> Tensor:
            by_name = _arrays(unravel(vector, parameters))
            tangent, rate_tangent = pack(self.spec, by_name), np.zeros_like(tasks[0].rates)
            for name, part in unpack(self.spec, rate_tangent).items():
                part[...] = by_name.get(LOG_RATE + name, 0.0)
            rate_tangent *= tasks[0].rates
            grads = _Gradients.zeros(len(tasks), tangent)

            def multiply(n: int) -> None:
                (steps, adapted, query), task = passes[n], tasks[n]
                pushed = tangent
                if shifts is not None:
                    pushed = self._shifted(tangent, shifts[n].jvp(by_name))
                for step, samples in zip(steps, task.support, strict=True):
                    pushed = inner_step.step_jvp(
                        task.config, step, samples, task.rates, pushed, rate_tangent
                    )
                adjoint = fisher.fisher_product(task.config, adapted, task.query, query, pushed)
                grads.params[n], grads.log_rates[n] = task.pull_back(steps, adjoint)

            self.microbatcher.for_each_task(range(len(tasks)), multiply)
            return ravel(self._mean_by_name(parameters, batch.context_gradient, grads).values())

        return product

    def behavior_policies(
        self,
        parameters: Parameters,
        support: tuple[Samples[Tensor], ...],
        query: Samples[Tensor],
        context_gradient: Tensor,
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        """Return the action distributions, without a graph, that ``parameters`` lead to."""
        tasks, size, _ = query.observations.shape
        config, starts, rates = self._kernel_arguments(parameters, context_gradient, "first")
        support_arrays = tuple(_samples_arrays(samples) for samples in support)
        steps, dtype = len(support), starts[0].dtype
        means = np.empty((steps + 1, tasks, size, self.spec.action_size), dtype)
        log_stds = np.empty((steps + 1, tasks, self.spec.action_size), dtype)
        query_arrays = _samples_arrays(query)

        def evaluate(n: int) -> None:
            path, adapted = take_steps(config, starts[n], rates, _rows(support_arrays, n))
            last = kernels.evaluate_query(config, adapted, _row(query_arrays, n))
            for k, step in enumerate(path):
                means[k, n] = step.mean.reshape(size, -1)
                log_stds[k, n] = inner_step.clamped_log_std(config, step.params)
            means[steps, n], log_stds[steps, n] = last.mean.reshape(size, -1), last.log_std

        self.microbatcher.for_each_task(range(tasks), evaluate)
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
        by_context = self.inner.parameters == "context"
        support = () if by_context else (samples,) * self.inner.steps
        gradient = torch.zeros(1, self.inner.context_size if by_context else 0)
        policies = self.behavior_policies(parameters, support, samples, gradient)
        batch = MetaBatch(support, policies[0], samples, policies[1], torch.zeros(1), gradient)
        self.value_and_grad(parameters, batch, "second")
        if outer_objective(self.outer.objective).uses_trust_region:
            self.value(parameters, batch, "second")
            linear = self.linearize(parameters, batch, "second")
            linear.fisher_product(ravel(parameters.values()))

    def _evaluate(
        self,
        parameters: Parameters,
        batch: MetaBatch,
        order: Order,
        *,
        with_grads: bool = True,
        keep: dict[int, ForwardPass] | None = None,
    ) -> tuple[Tensor, Diagnostics, _Gradients]:
        """Return loss, diagnostics, and the gradients by the policy and by log rates.

        Without ``with_grads`` the gradients are zero. The tasks' passes are left in ``keep``.
        """
        tasks = self._tasks(parameters, batch, order)
        objective = outer_objective(self.outer.objective)
        coefficient = self.outer.inner_kl_coefficient if objective.penalizes_inner_kl else 0.0
        params, clip = tasks[0].params, self.outer.clip
        log_probs = np.empty(batch.query.log_probs.shape, params.dtype)
        losses = np.empty(len(tasks), params.dtype)
        stats = np.empty((len(tasks), len(Diagnostics._fields)), params.dtype)
        grads = _Gradients.zeros(len(tasks), params)

        def evaluate_group(group: range) -> None:
            passes: dict[int, ForwardPass] = {} if keep is None else keep

            def forward(n: int) -> None:
                passes[n] = run = tasks[n].forward()
                log_probs[n] = run.query.log_probs.reshape(log_probs.shape[1:])
                stats[n] = tasks[n].stats(run, clip)

            def backward(n: int) -> None:
                if objective.toward_adapted:
                    grads.params[n] = params - passes[n].adapted
                    return
                slopes = log_prob_grads[n - group.start].reshape(-1)
                grads.params[n], grads.log_rates[n] = tasks[n].backward(
                    passes[n], slopes, coefficient
                )

            self.microbatcher.for_each_task(group, forward)
            rows = slice(group.start, group.stop)
            losses[rows], log_prob_grads = self._loss_and_grad(
                torch.from_numpy(log_probs[rows]), slice_rows(batch.query, rows.start, rows.stop)
            )
            if with_grads:
                self.microbatcher.for_each_task(group, backward)

        # A group shares one evaluation of the loss; its forward passes are in memory together.
        size = max(_MIN_GROUP, 2 * (self.microbatcher.threads or 1))
        for start in range(0, len(tasks), size):
            evaluate_group(range(start, min(start + size, len(tasks))))
        diagnostics = mean_diagnostics(Diagnostics(*torch.from_numpy(stats).unbind(1)))
        loss = torch.from_numpy(losses).mean() + coefficient * diagnostics.inner_kl
        return loss, diagnostics, grads

    def _loss_and_grad(self, log_probs: Tensor, samples: Samples[Tensor]) -> tuple[Array, Array]:
        """Return outer losses (N,), and their gradient (N, K, T) by log-probabilities."""
        leaf = log_probs.detach().requires_grad_()
        with torch.enable_grad():
            losses = outer_loss(self.outer, leaf, samples)
            # Of the sum, whose slope by each loss is 1: given slopes, PyTorch imports SymPy, 0.4 s.
            (grads,) = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)
        return losses.detach().numpy(), grads.numpy()

    def _tasks(self, parameters: Parameters, batch: MetaBatch, order: Order) -> list[CompiledTask]:
        config, starts, rates = self._kernel_arguments(parameters, batch.context_gradient, order)
        support = tuple(_samples_arrays(samples) for samples in batch.support)
        support_behavior = tuple(_gaussian_arrays(policy) for policy in batch.support_behavior)
        query, query_behavior = _samples_arrays(batch.query), _gaussian_arrays(batch.query_behavior)
        return [
            CompiledTask(
                config,
                start,
                rates,
                support=_rows(support, n),
                support_behavior=_rows(support_behavior, n),
                query=_row(query, n),
                query_behavior=_row(query_behavior, n),
            )
            for n, start in enumerate(starts)
        ]

    def _kernel_arguments(
        self, parameters: Parameters, context_gradient: Tensor, order: Order
    ) -> tuple[KernelConfig, list[Array], Array]:
        """Return sizes and order, each task's parameters (Q,) where it starts, and rates (Q,)."""
        values = _arrays(parameters)
        config = kernel_config(self.inner, self.spec, second_order=order == "second")
        params, rates = pack(self.spec, values), pack_rates(self.inner, self.spec, values)
        shifts = self._context_shifts(values, context_gradient)
        if shifts is None:
            return config, [params] * len(context_gradient), rates
        return config, [self._shifted(params, each.shift()) for each in shifts], rates

    def _context_shifts(
        self, values: Mapping[str, Array], context_gradient: Tensor
    ) -> list[ContextShift] | None:
        """Return the context's shift for each task; None if there is no context."""
        if self.inner.parameters != "context":
            return None
        gradients = _array(context_gradient)
        return [ContextShift.after(self.inner, self.spec, values, row) for row in gradients]

    def _shifted(self, params: Array, shift: Array) -> Array:
        """Return ``params`` (Q,), or a tangent of them, with ``shift`` (U,) in the first bias."""
        shifted = params.copy()
        unpack(self.spec, shifted)[first_bias(self.spec)] += shift
        return shifted

    def _mean_by_name(
        self, parameters: Parameters, context_gradient: Tensor, grads: _Gradients
    ) -> Parameters:
        """Average gradients over tasks, by name in the order of ``parameters``."""
        params, log_rates = (part.mean(axis=0) for part in grads)
        mean: dict[str, Array] = unpack(self.spec, params)
        for name, value in unpack(self.spec, log_rates).items():
            mean[LOG_RATE + name] = value
        shifts = self._context_shifts(_arrays(parameters), context_gradient)
        if shifts is not None:
            adjoints = [unpack(self.spec, row)[first_bias(self.spec)] for row in grads.params]
            pulled = [shift.vjp(adjoint) for shift, adjoint in zip(shifts, adjoints, strict=True)]
            for name in (CONTEXT_WEIGHT, LOG_RATE + CONTEXT):
                mean[name] = np.mean([by_name[name] for by_name in pulled], axis=0)
        return {name: torch.from_numpy(mean[name].copy()) for name in parameters}


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
