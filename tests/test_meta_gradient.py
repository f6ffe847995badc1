"""The meta-gradient against finite differences and against a reference written from scratch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.config import Settings, validate_settings
from maml_ray.meta_objective import MetaBatch, meta_loss
from maml_ray.policy import PolicySpec
from tests import oracles
from tests.oracles import Parameters

SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)

OUTER = ["ppo", "reinforce"]
INNER = ["ratio", "log_prob"]


def make_settings(
    outer: str = "ppo", inner: str = "ratio", steps: int = 1, order: str = "second", **more: Any
) -> Settings:
    return validate_settings(
        {
            "meta_batch": {"tasks": more.pop("tasks", 3)},
            "inner": {"steps": steps, "objective": inner, "learning_rate": 0.3, "l2": 0.01},
            # A large coefficient, so that a missing penalty cannot hide.
            "outer": {"objective": outer, "order": order, "inner_kl_coefficient": 0.5, **more},
        }
    )


def problem(settings: Settings, seed: int = 0) -> tuple[Parameters, MetaBatch]:
    rng = np.random.default_rng(seed)
    parameters = oracles.random_parameters(SPEC, rng)
    return parameters, oracles.random_meta_batch(settings, SPEC, parameters, rng)


def loss_of(settings: Settings, batch: MetaBatch) -> Any:
    def loss(parameters: Parameters) -> Tensor:
        return meta_loss(settings, SPEC, parameters, batch)[0]

    return loss


def take(index: Any, part: Tensor) -> Tensor:
    return part[index]


def meta_gradient(settings: Settings, parameters: Parameters, batch: MetaBatch) -> Parameters:
    return oracles.gradient(loss_of(settings, batch), parameters)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_second_order_gradient_is_that_of_finite_differences(
    outer: str, inner: str, steps: int
) -> None:
    settings = make_settings(outer, inner, steps)
    parameters, batch = problem(settings)
    expected = oracles.finite_differences(loss_of(settings, batch), parameters)
    second = meta_gradient(settings, parameters, batch)
    assert oracles.relative_error(second, expected) < 1e-5
    # A detached inner step would give the first-order gradient, which is quite another.
    first = meta_gradient(make_settings(outer, inner, steps, "first"), parameters, batch)
    assert oracles.relative_error(first, expected) > 1e-2


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_loss_and_gradient_are_those_of_the_task_by_task_reference(
    outer: str, inner: str, steps: int, order: str
) -> None:
    settings = make_settings(outer, inner, steps, order)
    parameters, batch = problem(settings)

    def reference(theta: Parameters) -> Tensor:
        return oracles.meta_loss(settings, SPEC, theta, batch)

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    torch.testing.assert_close(
        loss_of(settings, batch)(leaves), reference(leaves), rtol=1e-10, atol=1e-12
    )
    actual = meta_gradient(settings, parameters, batch)
    expected = oracles.gradient(reference, parameters)
    assert oracles.relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_reference_holds_for_other_networks_and_log_std_on_the_floor(activation: str) -> None:
    settings = make_settings(steps=2)
    spec = PolicySpec(3, 2, (5, 4), activation, 0.0, -0.4)
    rng = np.random.default_rng(4)
    parameters = oracles.random_parameters(spec, rng)
    parameters["log_std"] = torch.tensor([-0.9, 0.3]).double()
    batch = oracles.random_meta_batch(settings, spec, parameters, rng)
    actual = oracles.gradient(lambda t: meta_loss(settings, spec, t, batch)[0], parameters)
    expected = oracles.gradient(lambda t: oracles.meta_loss(settings, spec, t, batch), parameters)
    assert oracles.relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("order", ["second", "first"])
def test_query_data_matters_as_the_outer_data_and_support_as_the_inner(
    outer: str, order: str
) -> None:
    settings = make_settings(outer, order=order, inner_kl_coefficient=0.0)
    parameters, batch = problem(settings)
    loss, before = loss_of(settings, batch)(parameters), meta_gradient(settings, parameters, batch)

    # The outer loss is linear in the query's advantages (where it is not clipped): reinforce
    # doubles exactly. It is not linear in the support's.
    query = batch.query._replace(advantages=2.0 * batch.query.advantages)
    changed = batch._replace(query=query)
    torch.testing.assert_close(loss_of(settings, changed)(parameters), 2.0 * loss)
    doubled = {name: 2.0 * value for name, value in before.items()}
    assert oracles.relative_error(meta_gradient(settings, parameters, changed), doubled) < 1e-12

    support = batch.support[0]._replace(advantages=2.0 * batch.support[0].advantages)
    changed = batch._replace(support=(support,))
    assert abs(float(loss_of(settings, changed)(parameters) - loss)) > 1e-4
    assert oracles.relative_error(meta_gradient(settings, parameters, changed), before) > 1e-3
    assert oracles.relative_error(meta_gradient(settings, parameters, changed), doubled) > 1e-2


def test_every_support_set_matters() -> None:
    settings = make_settings(steps=2)
    parameters, batch = problem(settings)
    before = meta_gradient(settings, parameters, batch)
    for step in range(2):
        support = list(batch.support)
        support[step] = support[step]._replace(advantages=-support[step].advantages)
        changed = batch._replace(support=tuple(support))
        assert oracles.relative_error(meta_gradient(settings, parameters, changed), before) > 1e-3


@pytest.mark.parametrize("outer", OUTER)
def test_copies_of_a_task_have_the_meta_gradient_of_one(outer: str) -> None:
    """An inner loss averaged over tasks would divide the inner rate by their number."""
    settings = make_settings(outer, tasks=1)
    parameters, one = problem(settings)
    many = oracles.tree_map(lambda part: part.repeat(5, *[1] * (part.ndim - 1)), one)
    torch.testing.assert_close(
        loss_of(settings, many)(parameters), loss_of(settings, one)(parameters)
    )
    actual = meta_gradient(settings, parameters, many)
    expected = meta_gradient(settings, parameters, one)
    assert oracles.relative_error(actual, expected) < 1e-12


def test_tasks_are_averaged_and_do_not_mix() -> None:
    settings = make_settings(steps=2)
    parameters, batch = problem(settings)
    alone = [
        meta_gradient(settings, parameters, oracles.tree_map(partial(take, slice(i, i + 1)), batch))
        for i in range(3)
    ]
    mean = {name: sum(task[name] for task in alone) / 3 for name in parameters}
    together = meta_gradient(settings, parameters, batch)
    assert oracles.relative_error(together, mean) < 1e-12  # type: ignore[arg-type]


def test_the_inner_kl_penalty_is_added_to_the_loss() -> None:
    """In ppo; reinforce has none. Diagnostics report it either way."""
    for outer, added in (("ppo", True), ("reinforce", False)):
        without, with_it = (
            make_settings(outer, steps=2, inner_kl_coefficient=c) for c in (0.0, 0.5)
        )
        parameters, batch = problem(without)
        plain, diagnostics = meta_loss(without, SPEC, parameters, batch)
        penalised, _ = meta_loss(with_it, SPEC, parameters, batch)
        assert float(diagnostics.inner_kl) > 1e-4
        torch.testing.assert_close(penalised - plain, 0.5 * diagnostics.inner_kl * added)


def test_diagnostics_by_hand() -> None:
    settings = make_settings(clip=0.1)
    parameters, batch = problem(settings)
    _, diagnostics = meta_loss(settings, SPEC, parameters, batch)
    errors = []
    for task in range(3):
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        support = oracles.tree_map(partial(take, task), batch.support[0])
        policy = oracles.action_distribution(SPEC, leaves, support.observations)
        score = torch.exp(policy.log_prob(support.actions) - support.log_probs)
        loss = -(score * support.advantages * support.weights).sum()
        loss = loss + 0.01 * sum((value**2).sum() for value in leaves.values())
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        theta = {k: v - 0.3 * g for (k, v), g in zip(leaves.items(), slopes, strict=True)}
        query = oracles.tree_map(partial(take, (task, slice(8))), batch.query)
        policy = oracles.action_distribution(SPEC, theta, query.observations)
        errors.append(torch.exp(policy.log_prob(query.actions) - query.log_probs).detach() - 1)
    error = torch.stack(errors)
    torch.testing.assert_close(diagnostics.largest_ratio_error, error.abs().max())
    torch.testing.assert_close(diagnostics.clip_fraction, (error.abs() > 0.1).double().mean())
    torch.testing.assert_close(diagnostics.query_kl, (error - torch.log1p(error)).mean())


def test_parameters_are_not_written_to() -> None:
    settings = make_settings(steps=2)
    parameters, batch = problem(settings)
    saved = {name: value.clone() for name, value in parameters.items()}
    meta_gradient(settings, parameters, batch)
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)
