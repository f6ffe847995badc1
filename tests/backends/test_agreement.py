"""The compiled backend against autograd, which is tested against everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import OuterSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.kernels.blocks import BLOCK
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import OUTER_OBJECTIVES, OuterObjective
from maml_ray.maml.meta_objective import MetaBatch, meta_loss
from maml_ray.policies.spec import LOG_STD, PolicySpec
from tests.learning_runs import same
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
                "parameters": more.pop("parameters", "all"),
                "context_size": 3,
            },
            "outer": {"objective": outer, "inner_kl_coefficient": 0.5, **more},
        }
    )


def problem(settings: Settings, spec: PolicySpec, length: int = 5) -> tuple[Parameters, MetaBatch]:
    rng = np.random.default_rng(0)
    parameters = oracles.random_parameters(spec, rng)
    batch = oracles.random_meta_batch(settings, spec, parameters, rng, length)
    return oracles.meta_parameters(settings, parameters, rng), batch


def backend(kind: type[Backend], settings: Settings, spec: PolicySpec) -> Backend:
    return kind(settings.inner, settings.outer, spec)


def check(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    order: Order = "second",
) -> None:
    """Loss, diagnostics and gradient are autograd's."""
    expected = backend(AutogradBackend, settings, spec).value_and_grad(parameters, batch, order)
    found = backend(CompiledBackend, settings, spec).value_and_grad(parameters, batch, order)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(tuple(found[1]), tuple(expected[1]), rtol=1e-11, atol=1e-13)
    assert list(found[2]) == list(parameters)
    for name, value in found[2].items():
        torch.testing.assert_close(value, expected[2][name], rtol=1e-9, atol=1e-11)


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


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("inner", ["ratio", "log_prob"])
@pytest.mark.parametrize("outer", ["ppo", "trpo"])
@pytest.mark.parametrize("learn_inner_rates", [False, True])
def test_inner_steps_on_the_last_layer(
    learn_inner_rates: bool, outer: str, inner: str, steps: int, order: Order
) -> None:
    settings = settings_of(
        outer, inner, steps, parameters="head", learn_inner_rates=learn_inner_rates
    )
    check(settings, SPECS["tanh"], *problem(settings, SPECS["tanh"]), order)


@pytest.mark.parametrize("outer", ["ppo", "trpo", "reinforce"])
@pytest.mark.parametrize("spec", [SPECS["tanh"], SPECS["relu"]], ids=["tanh", "relu"])
@pytest.mark.parametrize("learn_inner_rates", [False, True])
def test_inner_steps_of_a_context(learn_inner_rates: bool, spec: PolicySpec, outer: str) -> None:
    """Their gradients are data, so that there is nothing to drop in first order."""
    settings = settings_of(outer, parameters="context", learn_inner_rates=learn_inner_rates)
    parameters, batch = problem(settings, spec)
    check(settings, spec, parameters, batch)
    compiled = backend(CompiledBackend, settings, spec)
    second, first = (
        compiled.value_and_grad(parameters, batch, order)[2] for order in ("second", "first")
    )
    assert same(first, second)


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


def test_what_the_compiled_backend_does_not_support() -> None:
    gaussian = SPECS["tanh"]
    discrete = PolicySpec(3, 4, (4,), "tanh", 0.0, -3.0, discrete=True)
    for settings, spec in (
        (settings_of(inner="dice"), gaussian),
        (settings_of(e_maml_coefficient=0.1), gaussian),
        (settings_of(), discrete),
    ):
        assert not CompiledBackend.supports(settings.inner, settings.outer, spec)
        assert AutogradBackend.supports(settings.inner, settings.outer, spec)
        with pytest.raises(ValueError, match="CompiledBackend does not support"):
            backend(CompiledBackend, settings, spec)


@pytest.mark.parametrize("kind", [AutogradBackend, CompiledBackend])
def test_an_unknown_outer_objective_is_refused_by_every_backend(kind: type[Backend]) -> None:
    settings = settings_of()
    unknown = settings.outer.model_copy(update={"objective": "pop"})
    with pytest.raises(
        SettingsError,
        match=r"'pop' is not known; did you mean 'ppo'\? \(choose",
    ):
        kind(settings.inner, unknown, SPECS["tanh"])


def geometric(log_probs: Tensor, samples: Samples[Tensor], outer: OuterSettings) -> Tensor:
    """A loss that no other code knows: the square of ratios, weighted, beside their advantages."""
    ratio = (log_probs - samples.log_probs).exp()
    gain = ratio * samples.advantages - outer.clip * (ratio - 1.0) ** 2
    return -(gain * samples.weights).sum((-2, -1))


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("penalized", [False, True])
def test_an_outer_objective_is_added_in_one_place(
    monkeypatch: pytest.MonkeyPatch, penalized: bool, steps: int, order: Order
) -> None:
    """Both backends compute its gradient, which is that of finite differences."""
    added = OuterObjective(geometric, penalizes_inner_kl=penalized)
    monkeypatch.setitem(OUTER_OBJECTIVES, "geometric", added)
    settings, spec = settings_of(steps=steps), SPECS["tanh"]
    outer = settings.outer.model_copy(update={"objective": "geometric"})
    settings = settings.model_copy(update={"outer": outer})
    parameters, batch = problem(settings, spec)
    check(settings, spec, parameters, batch, order)
    if order == "second":
        expected = oracles.finite_differences(
            lambda theta: meta_loss(meta_oracles.objective(settings, spec), theta, batch)[0],
            parameters,
        )
        compiled = backend(CompiledBackend, settings, spec)
        gradient = compiled.value_and_grad(parameters, batch, order)[2]
        assert oracles.relative_error(gradient, expected) < 1e-5


def zero(log_probs: Tensor, samples: Samples[Tensor], outer: OuterSettings) -> Tensor:
    return (0.0 * log_probs * samples.weights).sum((-2, -1))


@pytest.mark.parametrize("kind", [AutogradBackend, CompiledBackend])
def test_an_objective_without_a_gradient_gets_none(
    monkeypatch: pytest.MonkeyPatch, kind: type[Backend]
) -> None:
    """No other objective's gradient takes its place."""
    monkeypatch.setitem(OUTER_OBJECTIVES, "zero", OuterObjective(zero))
    settings, spec = settings_of(), SPECS["tanh"]
    outer = settings.outer.model_copy(update={"objective": "zero"})
    settings = settings.model_copy(update={"outer": outer})
    gradient = backend(kind, settings, spec).value_and_grad(*problem(settings, spec), "second")[2]
    assert float(oracles.flat(gradient).abs().max()) == 0.0


@pytest.mark.parametrize("kind", [AutogradBackend, CompiledBackend])
def test_inputs_are_not_written_to(kind: type[Backend]) -> None:
    settings, spec = settings_of(steps=2), SPECS["relu"]
    parameters, batch = problem(settings, spec)
    before = meta_oracles.tree_map(torch.clone, (parameters, batch))
    backend(kind, settings, spec).value_and_grad(parameters, batch, "second")
    torch.testing.assert_close((parameters, batch), before, rtol=0.0, atol=0.0)
