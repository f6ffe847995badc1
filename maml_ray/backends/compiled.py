"""The meta-gradient on a CPU: tensors of a meta-batch to the compiled loops of each task, and back.

Axes: N tasks, K inner steps, S samples of a task and phase, D observation size, A action size, Q
parameters of the policy, flat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from maml_ray.backends.compiled_inner import Array, alone, flat, named, rates_of, rules_of
from maml_ray.backends.coverage import is_covered
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import Settings
from maml_ray.kernels import fisher, inner_step, meta_gradient
from maml_ray.kernels.inner_step import Data, Rules
from maml_ray.kernels.meta_gradient import LARGEST_RATIO_ERROR, Held
from maml_ray.maml.distributions import ActionDistribution, Gaussian, Parameters, to_torch
from maml_ray.maml.losses import Samples
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch, MetaObjective
from maml_ray.maml.meta_parameters import LOG_RATE, initial_meta_parameters
from maml_ray.policies.spec import PolicySpec

Arrays = TypeVar("Arrays", Data, Held)


def goes_by_loops(settings: Settings, spec: PolicySpec, device: torch.device) -> bool:
    """Whether the compiled loops cover these settings, and are for this device."""
    return is_covered(settings, spec) and device.type == "cpu"


def compiled_meta_gradient(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> tuple[Tensor, Diagnostics, Parameters]:
    """The meta-loss (), what it tells, and its gradient, averaged over tasks.

    What :func:`~maml_ray.backends.analytic_gradient.analytic_meta_gradient` gives, and for the same
    settings, of tensors on the CPU.
    """
    told, gradients = _of_each_task(objective, parameters, batch, passes)
    return *_averaged(told), _mean_by_name(objective, parameters, *gradients)


def compiled_task_gradients(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> Tensor:
    """The meta-gradient (N, P) of every task alone, in the order of ``parameters``."""
    _, gradients = _of_each_task(objective, parameters, batch, passes)
    rows = [
        _mean_by_name(objective, parameters, *(part[n : n + 1] for part in gradients))
        for n in range(len(batch.credit))
    ]
    return torch.stack([torch.cat([value.flatten() for value in row.values()]) for row in rows])


def _of_each_task(
    objective: MetaObjective, parameters: Parameters, batch: MetaBatch, passes: Passes
) -> tuple[Array, tuple[Array, Array]]:
    """What there is to tell (N, ...), and gradients (N, Q): by the policy, and by its log rates."""
    rules, theta, rates = _told(objective, parameters)
    data, told = _data_of(batch), _room_to_tell(batch, theta)
    gradients, by_rates = np.empty((2, len(told), len(theta)), theta.dtype)

    def of_tasks(some: range) -> None:
        for n in some:
            into = (gradients[n], by_rates[n], told[n])
            meta_gradient.meta_gradient(rules, theta, rates, *_task_of(data, n), *into)

    with alone():
        passes.over(len(told), of_tasks)
    return told, (gradients, by_rates * rates)


def compiled_meta_value(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> tuple[Tensor, Diagnostics]:
    """The same without the gradient."""
    rules, theta, rates = _told(objective, parameters)
    data, told = _data_of(batch), _room_to_tell(batch, theta)

    def of_tasks(some: range) -> None:
        for n in some:
            meta_gradient.meta_value(rules, theta, rates, *_task_of(data, n), told[n])

    with alone():
        passes.over(len(told), of_tasks)
    return _averaged(told)


def compiled_fisher(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> Callable[[Parameters], Parameters]:
    """The Hessian of the adapted policies' mean KL, at KL zero, as a product with a direction.

    What :func:`~maml_ray.backends.analytic_gradient.analytic_fisher` gives, of tensors on the CPU.
    """
    rules, theta, rates = _told(objective, parameters)
    support, _, query, _ = _data_of(batch)
    tasks = len(batch.credit)
    steps: dict[int, inner_step.Steps] = {}

    def taken(some: range) -> None:
        for n in some:
            steps[n] = inner_step.steps_taken(rules, theta, rates, _task(support, n))

    with alone():
        passes.over(tasks, taken)

    def product(direction: Parameters) -> Parameters:
        spec, by_name = objective.spec, _arrays(direction)
        moved, rates_moved = flat(spec, by_name), np.zeros_like(rates)
        if objective.settings.inner.learn_inner_rates:
            by_log = {name: by_name[LOG_RATE + name] for name in spec.shapes()}
            rates_moved = rates * flat(spec, by_log)
        gradients, by_rates = np.empty((2, tasks, len(theta)), theta.dtype)

        def of_tasks(some: range) -> None:
            for n in some:
                seen = (_task(support, n), query.observations[n], query.weights[n])
                into = (gradients[n], by_rates[n])
                fisher.fisher_product(rules, rates, steps[n], *seen, moved, rates_moved, *into)

        with alone():
            passes.over(tasks, of_tasks)
        return _mean_by_name(objective, parameters, gradients, by_rates * rates)

    return product


def compiled_policies(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: Sequence[Samples],
    query: Samples,
    passes: Passes = WHOLE,
) -> tuple[tuple[Gaussian, ...], Gaussian]:
    """The policies of each inner step at its support data, and the adapted one at the query data.

    Means (N, S, A) and log standard deviations (N, A).
    """
    rules, theta, rates = _told(MetaObjective(settings, spec, "first"), parameters)
    (tasks, samples, _), steps = query.observations.shape, len(support)
    seen = _data(query)
    phases = _phases([_data(phase) for phase in support], seen)
    means = np.empty((tasks, steps + 1, samples * spec.action_size), theta.dtype)
    log_stds = np.empty((tasks, steps + 1, spec.action_size), theta.dtype)

    def of_tasks(some: range) -> None:
        for n in some:
            data = (_task(phases, n), seen.observations[n])
            inner_step.policies(rules, theta, rates, *data, means[n], log_stds[n])

    with alone():
        passes.over(tasks, of_tasks)
    mean = torch.from_numpy(means.reshape(tasks, steps + 1, samples, -1))
    log_std = torch.from_numpy(log_stds)
    *before, adapted = (Gaussian(mean[:, k], log_std[:, k]) for k in range(steps + 1))
    return tuple(before), adapted


def warm_up(settings: Settings, spec: PolicySpec) -> None:
    """Have the loops compiled, or fetched from where they are kept, ahead of the first batch."""
    rng = np.random.default_rng(0)
    parameters = to_torch(initial_meta_parameters(spec, settings.inner, rng))
    samples = Samples(
        observations=torch.zeros(1, 1, spec.observation_size),
        actions=torch.zeros(1, 1, spec.action_size),
        log_probs=torch.zeros(1, 1, 1),
        advantages=torch.zeros(1, 1, 1),
        weights=torch.ones(1, 1, 1),
    )
    support = (samples,) * settings.inner.steps
    policies = compiled_policies(settings, spec, parameters, support, samples)
    batch = MetaBatch(support, policies[0], samples, policies[1], torch.zeros(1))
    told = (MetaObjective(settings, spec, "second"), parameters, batch)
    compiled_meta_gradient(*told)
    if settings.outer.objective == "trpo":
        compiled_meta_value(*told)
        compiled_fisher(*told)(parameters)


def _told(objective: MetaObjective, parameters: Parameters) -> tuple[Rules, Array, Array]:
    """What is asked for, the policy's parameters (Q,) and the inner rates (Q,)."""
    settings, spec = objective.settings, objective.spec
    values = _arrays(parameters)
    rules = rules_of(settings, spec, second=objective.order == "second")
    return rules, flat(spec, values), rates_of(settings, spec, values)


def _data_of(batch: MetaBatch) -> tuple[Data, Held, Data, Held]:
    """Support (N, K, ...) and query (N, ...) data, each beside the policies that collected them."""
    query, of_query = _data(batch.query), _held(batch.query_collector)
    support = _phases([_data(phase) for phase in batch.support], query)
    of_support = _phases([_held(policy) for policy in batch.collectors], of_query)
    return support, of_support, query, of_query


def _task_of(data: tuple[Data, Held, Data, Held], n: int) -> tuple[Data, Held, Data, Held]:
    support, of_support, query, of_query = data
    return _task(support, n), _task(of_support, n), _task(query, n), _task(of_query, n)


def _room_to_tell(batch: MetaBatch, theta: Array) -> Array:
    return np.empty((len(batch.credit), 1 + len(Diagnostics._fields)), theta.dtype)


def _averaged(told: Array) -> tuple[Tensor, Diagnostics]:
    """Over tasks, the first axis; of the largest error the largest."""
    means = told.mean(axis=0)
    means[LARGEST_RATIO_ERROR] = told[:, LARGEST_RATIO_ERROR].max()
    loss, *diagnostics = torch.from_numpy(means)
    return loss, Diagnostics(*diagnostics)


def _mean_by_name(
    objective: MetaObjective, parameters: Parameters, policy: Array, log_rates: Array
) -> Parameters:
    """The mean over tasks of (N, Q) gradients by the policy's parameters and by their log rates."""
    found = _named(objective.spec, policy.mean(axis=0))
    if objective.settings.inner.learn_inner_rates:
        rates = _named(objective.spec, log_rates.mean(axis=0))
        found |= {LOG_RATE + name: value for name, value in rates.items()}
    return {name: found[name] for name in parameters}


def _arrays(parameters: Parameters) -> dict[str, Array]:
    return {name: _array(value) for name, value in parameters.items()}


def _named(spec: PolicySpec, values: Array) -> Parameters:
    """Numbers (Q,), by name."""
    return {name: torch.from_numpy(value) for name, value in named(spec, values).items()}


def _data(samples: Samples) -> Data:
    return Data(*(_array(field).reshape(len(field), -1) for field in samples))


def _held(policy: ActionDistribution) -> Held:
    assert isinstance(policy, Gaussian)  # a discrete policy is not covered
    return Held(*(_array(field).reshape(len(field), -1) for field in policy))


def _phases(phases: Sequence[Arrays], like: Arrays) -> Arrays:
    """Phases (N, n) side by side (N, K, n); none of them, but of the same width, where K is 0."""
    if not phases:
        return type(like)(*(field[:, None][:, :0] for field in like))
    if len(phases) == 1:
        return type(like)(*(field[:, None] for field in phases[0]))
    return type(like)(*(np.stack(fields, axis=1) for fields in zip(*phases, strict=True)))


def _task(arrays: Arrays, n: int) -> Arrays:
    return type(arrays)(*(field[n] for field in arrays))


def _array(values: Tensor) -> Array:
    array: Array = values.detach().contiguous().numpy()
    return array
