"""The meta-gradient by hand against autograd's, which is tested against everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from maml_ray.backends.analytic_gradient import analytic_meta_gradient
from maml_ray.backends.compiled import compiled_meta_gradient
from maml_ray.backends.coverage import is_covered
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.kernels.mlp import BLOCK
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, MetaObjective, meta_loss
from maml_ray.policies.spec import LOG_STD, PolicySpec
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

SPECS = {
    "tanh": PolicySpec(3, 2, (5, 4), "tanh", 0.0, -3.0),
    "relu": PolicySpec(3, 2, (4, 5), "relu", 0.0, -3.0),
    "no hidden layer": PolicySpec(3, 2, (), "tanh", 0.0, -3.0),
}


def settings_of(outer: str = "ppo", inner: str = "ratio", steps: int = 1, **more: Any) -> Settings:
    """Large coefficients, so that a missing term cannot hide."""
    return validate_settings(
        {
            "meta_batch": {"tasks": 3},
            "inner": {
                "steps": steps,
                "objective": inner,
                "learning_rate": 0.3,
                "l2": more.pop("l2", 0.01),
                "learn_inner_rates": more.pop("learn_inner_rates", False),
            },
            "outer": {"objective": outer, "inner_kl_coefficient": 0.5, **more},
        }
    )


def problem(settings: Settings, spec: PolicySpec, length: int = 5) -> tuple[Parameters, MetaBatch]:
    rng = np.random.default_rng(0)
    parameters = oracles.random_parameters(spec, rng)
    batch = oracles.random_meta_batch(settings, spec, parameters, rng, length)
    return oracles.with_rates(
        parameters, rng
    ) if settings.inner.learn_inner_rates else parameters, batch


def check(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    order: Order = "second",
) -> None:
    """Loss, diagnostics and gradient are autograd's."""
    assert is_covered(settings, spec)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    objective = MetaObjective(settings, spec, order)
    loss, told = meta_loss(objective, leaves, batch)
    expected = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    for by_hand in (analytic_meta_gradient, compiled_meta_gradient):
        found, told_too, gradient = by_hand(objective, parameters, batch)
        assert list(gradient) == list(parameters)
        torch.testing.assert_close(found, loss.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(tuple(told_too), tuple(told), rtol=1e-11, atol=1e-13)
        for slope, value in zip(expected, gradient.values(), strict=True):
            torch.testing.assert_close(value, slope, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("inner", ["ratio", "log_prob"])
@pytest.mark.parametrize("outer", ["ppo", "trpo", "reinforce"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_it_is_what_autograd_finds(
    spec: PolicySpec, outer: str, inner: str, steps: int, order: Order
) -> None:
    settings = settings_of(outer, inner, steps)
    check(settings, spec, *problem(settings, spec), order)


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_learned_rates(steps: int, order: Order) -> None:
    settings = settings_of(steps=steps, learn_inner_rates=True)
    check(settings, SPECS["tanh"], *problem(settings, SPECS["tanh"]), order)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_log_std_below_on_and_above_its_floor(steps: int) -> None:
    settings, spec = settings_of(steps=steps, l2=0.0), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    for start in (-4.0, -3.0, -2.9):
        parameters[LOG_STD] = torch.tensor([start, 0.2], dtype=torch.float64)
        # Far from what collected the data: ratios of many sizes, and clipped ones.
        check(settings, spec, parameters, batch)


@pytest.mark.parametrize("samples", [BLOCK, BLOCK + 2, 2 * BLOCK + 50])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_samples_of_several_blocks(spec: PolicySpec, samples: int) -> None:
    settings = settings_of(steps=2)
    check(settings, spec, *problem(settings, spec, samples // 2))


def test_what_it_does_not_cover() -> None:
    gaussian = SPECS["tanh"]
    discrete = PolicySpec(3, 4, (4,), "tanh", 0.0, -3.0, discrete=True)
    assert not is_covered(settings_of(inner="dice"), gaussian)
    assert not is_covered(settings_of(e_maml_coefficient=0.1), gaussian)
    assert not is_covered(settings_of(), discrete)


def test_nothing_it_was_given_is_written_to() -> None:
    settings, spec = settings_of(steps=2), SPECS["relu"]
    parameters, batch = problem(settings, spec)
    before = meta_oracles.tree_map(torch.clone, (parameters, batch))
    analytic_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)
    torch.testing.assert_close((parameters, batch), before, rtol=0.0, atol=0.0)
