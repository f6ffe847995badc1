"""What the outer objective reads, what it does not mix, and what it tells beside its value."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from maml_ray.config.settings import Settings
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, meta_loss
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_meta_gradient import (
    CATEGORICAL,
    GAUSSIAN,
    ORDERS,
    OUTER,
    make_settings,
    meta_gradient,
    problem,
)
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters


def loss_of(settings: Settings, parameters: Parameters, batch: MetaBatch) -> Tensor:
    return meta_loss(meta_oracles.objective(settings, GAUSSIAN, "second"), parameters, batch)[0]


def take(index: Any, part: Tensor) -> Tensor:
    return part[index]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("order", ORDERS)
def test_query_data_matters_as_the_outer_data_and_support_as_the_inner(
    outer: str, order: Order
) -> None:
    settings = make_settings(outer, inner_kl_coefficient=0.0)
    parameters, batch = problem(settings)
    loss = loss_of(settings, parameters, batch)
    before = meta_gradient(settings, GAUSSIAN, parameters, batch, order)

    # The outer loss is linear in the query's advantages, and so doubles exactly. It is not linear
    # in the support's.
    query = batch.query._replace(advantages=2.0 * batch.query.advantages)
    changed = batch._replace(query=query)
    torch.testing.assert_close(loss_of(settings, parameters, changed), 2.0 * loss)
    doubled = {name: 2.0 * value for name, value in before.items()}
    after = meta_gradient(settings, GAUSSIAN, parameters, changed, order)
    assert oracles.relative_error(after, doubled) < 1e-12

    support = batch.support[0]._replace(advantages=2.0 * batch.support[0].advantages)
    changed = batch._replace(support=(support,))
    assert abs(float(loss_of(settings, parameters, changed) - loss)) > 1e-4
    after = meta_gradient(settings, GAUSSIAN, parameters, changed, order)
    assert oracles.relative_error(after, before) > 1e-3
    assert oracles.relative_error(after, doubled) > 1e-2


def test_every_support_set_matters() -> None:
    settings = make_settings(steps=2)
    parameters, batch = problem(settings)
    before = meta_gradient(settings, GAUSSIAN, parameters, batch)
    for step in range(2):
        support = list(batch.support)
        support[step] = support[step]._replace(advantages=-support[step].advantages)
        changed = batch._replace(support=tuple(support))
        after = meta_gradient(settings, GAUSSIAN, parameters, changed)
        assert oracles.relative_error(after, before) > 1e-3


@pytest.mark.parametrize("outer", OUTER)
def test_copies_of_a_task_have_the_meta_gradient_of_one(outer: str) -> None:
    """An inner loss averaged over tasks would divide the inner rate by their number."""
    settings = make_settings(outer, e_maml_coefficient=0.7)
    parameters, batch = problem(settings)
    one = only_the_first(batch)
    many = meta_oracles.tree_map(lambda part: part.repeat(5, *[1] * (part.ndim - 1)), one)
    torch.testing.assert_close(
        loss_of(settings, parameters, many), loss_of(settings, parameters, one)
    )
    actual = meta_gradient(settings, GAUSSIAN, parameters, many)
    expected = meta_gradient(settings, GAUSSIAN, parameters, one)
    assert oracles.relative_error(actual, expected) < 1e-12


def only_the_first(batch: MetaBatch) -> MetaBatch:
    return meta_oracles.tree_map(partial(take, slice(0, 1)), batch)


def test_tasks_are_averaged_and_do_not_mix() -> None:
    settings = make_settings(steps=2, e_maml_coefficient=0.7)
    parameters, batch = problem(settings)
    alone = [
        meta_gradient(
            settings,
            GAUSSIAN,
            parameters,
            meta_oracles.tree_map(partial(take, slice(i, i + 1)), batch),
        )
        for i in range(3)
    ]
    mean = {name: sum(task[name] for task in alone) / 3 for name in parameters}
    together = meta_gradient(settings, GAUSSIAN, parameters, batch)
    assert oracles.relative_error(together, mean) < 1e-12  # type: ignore[arg-type]


def test_the_inner_kl_penalty_is_added_to_the_loss() -> None:
    """In ppo; the others have none. Diagnostics report it either way."""
    for outer, added in (("ppo", True), ("trpo", False), ("reinforce", False)):
        without, with_it = (
            make_settings(outer, steps=2, inner_kl_coefficient=c) for c in (0.0, 0.5)
        )
        parameters, batch = problem(without)
        plain, diagnostics = meta_loss(
            meta_oracles.objective(without, GAUSSIAN, "second"), parameters, batch
        )
        penalized, _ = meta_loss(
            meta_oracles.objective(with_it, GAUSSIAN, "second"), parameters, batch
        )
        assert float(diagnostics.inner_kl) > 1e-4
        torch.testing.assert_close(penalized - plain, 0.5 * diagnostics.inner_kl * added)


@pytest.mark.parametrize("outer", OUTER)
def test_the_sampling_term_makes_support_data_of_good_tasks_likelier(outer: str) -> None:
    """Every outer objective has it, once per inner step; at equal credit zero it is nothing."""
    without, with_it = (make_settings(outer, steps=2, e_maml_coefficient=c) for c in (0.0, 0.5))
    parameters, batch = problem(without)
    difference = loss_of(with_it, parameters, batch) - loss_of(without, parameters, batch)
    expected = torch.zeros_like(difference)
    for task in meta_oracles.tasks_of(batch):
        _, policies = meta_oracles.adapted(without, GAUSSIAN, parameters, task)
        for policy, support in zip(policies, task.support, strict=True):
            ratio = torch.exp(meta_oracles.log_probs(policy, support) - support.log_probs)
            expected -= 0.5 * task.task_advantage * ratio[support.weights > 0].mean().detach() / 3
    torch.testing.assert_close(difference, expected)
    silent = batch._replace(task_advantage=torch.zeros_like(batch.task_advantage))
    torch.testing.assert_close(
        loss_of(with_it, parameters, silent), loss_of(without, parameters, silent), rtol=0, atol=0
    )


@pytest.mark.parametrize("spec", [GAUSSIAN, CATEGORICAL])
def test_diagnostics_by_hand(spec: PolicySpec) -> None:
    settings = make_settings(steps=2, clip=0.1)
    parameters, batch = problem(settings, spec)
    _, diagnostics = meta_loss(meta_oracles.objective(settings, spec, "second"), parameters, batch)
    errors, kls, inner_kls, entropies = [], [], [], []
    for task in meta_oracles.tasks_of(batch):
        theta, policies = meta_oracles.adapted(settings, spec, parameters, task)
        query, taken = task.query, task.query.weights > 0
        policy = meta_oracles.action_distribution(spec, theta, query.observations)
        new = meta_oracles.log_probs(policy, query)[taken]
        errors.append(torch.exp(new - query.log_probs[taken]).detach() - 1)
        old = meta_oracles.as_torch(task.query_behavior)
        kls.append(kl(old, policy)[taken.flatten()].mean())
        entropies.append(policy.entropy()[taken.flatten()].mean())
        for collector, now in zip(task.support_behavior, policies, strict=True):
            inner_kls.append(kl(meta_oracles.as_torch(collector), now)[taken.flatten()].mean())
    error = torch.stack(errors)
    torch.testing.assert_close(diagnostics.max_ratio_error, error.abs().max())
    torch.testing.assert_close(diagnostics.clip_fraction, (error.abs() > 0.1).double().mean())
    torch.testing.assert_close(diagnostics.query_kl, torch.stack(kls).mean().detach())
    torch.testing.assert_close(diagnostics.inner_kl, torch.stack(inner_kls).mean().detach())
    torch.testing.assert_close(diagnostics.entropy, torch.stack(entropies).mean().detach())
    assert not any(value.requires_grad for value in diagnostics)


def kl(old: Any, new: Any) -> Tensor:
    return torch.distributions.kl_divergence(old, new)


def test_parameters_are_not_written_to() -> None:
    settings = make_settings(steps=2)
    parameters, batch = problem(settings)
    saved = {name: value.clone() for name, value in parameters.items()}
    meta_gradient(settings, GAUSSIAN, parameters, batch)
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)
