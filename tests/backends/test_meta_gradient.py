"""The meta-gradient against finite differences and against a reference written from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, meta_loss
from maml_ray.policies.spec import PolicySpec
from tests.learning_runs import same
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters, StopGradient

GAUSSIAN = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)
CATEGORICAL = PolicySpec(3, 4, (4,), "tanh", 0.0, -3.0, discrete=True)

OUTER = ["ppo", "trpo", "reinforce"]
INNER = ["ratio", "dice", "log_prob"]
INNER_LOOPS = [("ratio", 0), *((inner, steps) for inner in INNER for steps in (1, 2))]
ORDERS: list[Order] = ["second", "first"]
POLICIES = [pytest.param(GAUSSIAN, id="gaussian"), pytest.param(CATEGORICAL, id="categorical")]


def make_settings(
    outer: str = "ppo", inner: str = "ratio", steps: int = 1, **more: Any
) -> Settings:
    return validate_settings(
        {
            "meta_batch": {"tasks": 3},
            "inner": {
                "steps": steps,
                "objective": inner,
                "learning_rate": 0.3,
                "l2": 0.01,
                "learn_inner_rates": more.pop("learn_inner_rates", False),
                "parameters": more.pop("parameters", "all"),
                "context_size": 2,
            },
            # Large coefficients, so that a missing term cannot hide.
            "outer": {"objective": outer, "inner_kl_coefficient": 0.5, **more},
        }
    )


def everything(outer: str, inner: str, steps: int) -> Settings:
    """Learned rates and E-MAML's term, too."""
    return make_settings(outer, inner, steps, learn_inner_rates=True, e_maml_coefficient=0.7)


PARTS: dict[str, dict[str, Any]] = {
    "all": {},
    "all, learned rates": {"learn_inner_rates": True},
    "head": {"parameters": "head"},
    "head, learned rates": {"parameters": "head", "learn_inner_rates": True},
    "context": {"parameters": "context"},
    "context, learned rates": {"parameters": "context", "learn_inner_rates": True},
}
"""What the inner steps change."""


def problem(
    settings: Settings, spec: PolicySpec = GAUSSIAN, seed: int = 0
) -> tuple[Parameters, MetaBatch]:
    rng = np.random.default_rng(seed)
    parameters = oracles.random_parameters(spec, rng)
    batch = oracles.random_meta_batch(settings, spec, parameters, rng)
    return oracles.meta_parameters(settings, parameters, rng), batch


def meta_gradient(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    order: Order = "second",
) -> Parameters:
    return oracles.gradient(
        lambda theta: meta_loss(meta_oracles.objective(settings, spec, order), theta, batch)[0],
        parameters,
    )


def frozen_reference(
    settings: Settings, spec: PolicySpec, batch: MetaBatch, order: Order
) -> Callable[[Parameters], Tensor]:
    """The reference, whose stopped gradients stay what they were where it was first called."""
    stop = StopGradient()

    def loss(theta: Parameters) -> Tensor:
        stop.rewind()
        return meta_oracles.meta_loss(settings, spec, theta, batch, order, stop)

    return loss


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("inner", "steps"), INNER_LOOPS)
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("spec", POLICIES)
def test_gradient_is_that_of_finite_differences(
    spec: PolicySpec, outer: str, inner: str, steps: int, order: Order
) -> None:
    """Along random directions in the policy's parameters and the logarithms of the rates.

    A stopped gradient, of DiCE's boxes or of first order, is a constant to finite differences:
    see :class:`StopGradient`.
    """
    check_finite_differences(everything(outer, inner, steps), spec, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("spec", POLICIES)
def test_gradient_through_steps_on_a_part_is_that_of_finite_differences(
    spec: PolicySpec, part: dict[str, Any], inner: str, order: Order
) -> None:
    """Also by the weights of a context, which no inner objective concerns."""
    check_finite_differences(make_settings("ppo", inner, 2, **part), spec, order)


def check_finite_differences(settings: Settings, spec: PolicySpec, order: Order) -> None:
    parameters, batch = problem(settings, spec)
    loss = frozen_reference(settings, spec, batch, order)
    value = meta_loss(meta_oracles.objective(settings, spec, order), parameters, batch)[0]
    torch.testing.assert_close(value, loss(parameters).detach(), rtol=1e-10, atol=1e-12)
    rng = np.random.default_rng(1)
    directions = [
        {name: torch.from_numpy(rng.standard_normal(v.shape)) for name, v in parameters.items()}
        for _ in range(6)
    ]
    expected = oracles.slopes_along(loss, parameters, directions)
    gradient = oracles.flat(meta_gradient(settings, spec, parameters, batch, order))
    actual = torch.stack([oracles.flat(direction) @ gradient for direction in directions])
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_itself_changes_as_its_gradient_says(steps: int, part: dict[str, Any]) -> None:
    """Every parameter and every rate alone, without any reference; nothing of it is a constant.

    But for the gradient that a context follows, which is data: it leaves one order.
    """
    by_context = part.get("parameters") == "context"
    sampling = 0.0 if by_context else 0.7
    settings = make_settings("ppo", "ratio", steps, e_maml_coefficient=sampling, **part)
    parameters, batch = problem(settings)
    expected = oracles.finite_differences(
        lambda theta: meta_loss(meta_oracles.objective(settings, GAUSSIAN, "second"), theta, batch)[
            0
        ],
        parameters,
    )
    second = meta_gradient(settings, GAUSSIAN, parameters, batch)
    assert oracles.relative_error(second, expected) < 1e-5
    first = meta_gradient(settings, GAUSSIAN, parameters, batch, "first")
    if by_context:
        assert same(first, second)
    else:  # a detached inner step would give the first-order gradient, which is quite another
        assert oracles.relative_error(first, expected) > 5e-3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("inner", "steps"), INNER_LOOPS)
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("spec", POLICIES)
def test_gradient_is_that_of_the_task_by_task_reference(
    spec: PolicySpec, outer: str, inner: str, steps: int, order: Order
) -> None:
    for settings in (everything(outer, inner, steps), make_settings(outer, inner, steps)):
        parameters, batch = problem(settings, spec)
        expected = oracles.gradient(
            lambda t, s=settings, b=batch: meta_oracles.meta_loss(s, spec, t, b, order),  # type: ignore[misc]
            parameters,
        )
        actual = meta_gradient(settings, spec, parameters, batch, order)
        assert oracles.relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("spec", POLICIES)
def test_the_inner_objectives_take_the_same_step_and_differ_in_their_curvature(
    spec: PolicySpec, outer: str
) -> None:
    """Also away from the policies that collected the data, as in a second outer step."""
    gradients, losses = [], []
    for inner in INNER:
        settings = make_settings(outer, inner)
        parameters, batch = problem(settings, spec)
        losses.append(
            meta_loss(meta_oracles.objective(settings, spec, "second"), parameters, batch)[0]
        )
        gradients.append(meta_gradient(settings, spec, parameters, batch))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])
    ratio, dice, log_prob = gradients
    assert oracles.relative_error(dice, ratio) > 1e-3
    assert oracles.relative_error(log_prob, ratio) > 1e-3
    assert oracles.relative_error(log_prob, dice) > 1e-3


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_reference_holds_for_other_networks_and_log_std_on_the_floor(activation: str) -> None:
    settings = make_settings(steps=2)
    spec = PolicySpec(3, 2, (5, 4), activation, 0.0, -0.4)
    rng = np.random.default_rng(4)
    parameters = oracles.random_parameters(spec, rng)
    parameters["log_std"] = torch.tensor([-0.9, 0.3]).double()
    batch = oracles.random_meta_batch(settings, spec, parameters, rng)
    actual = meta_gradient(settings, spec, parameters, batch)
    expected = oracles.gradient(
        lambda theta: meta_oracles.meta_loss(settings, spec, theta, batch), parameters
    )
    assert oracles.relative_error(actual, expected) < 1e-10
