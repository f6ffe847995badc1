"""What the compiled loops give beside the meta-gradient, which test_analytic_gradient looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maml_ray.backends.analytic_gradient import collecting_policies
from maml_ray.backends.compiled import (
    compiled_meta_gradient,
    compiled_meta_value,
    compiled_policies,
    warm_up,
)
from maml_ray.backends.compiled_inner import compiled_step
from maml_ray.backends.tensor_tree import mapped, sliced
from maml_ray.config.settings import Settings
from maml_ray.kernels import inner_step, meta_gradient
from maml_ray.kernels.mlp import BLOCK
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import adapt
from maml_ray.maml.losses import Samples, inner_losses
from maml_ray.maml.meta_objective import MetaObjective
from maml_ray.maml.meta_parameters import inner_rates, policy_part
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_analytic_gradient import SPECS, problem, settings_of


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_policies_on_the_way(spec: PolicySpec, steps: int) -> None:
    settings = settings_of(steps=steps)
    parameters, batch = problem(settings, spec, BLOCK)
    told = (settings, spec, parameters, batch.support, batch.query)
    torch.testing.assert_close(
        compiled_policies(*told), collecting_policies(*told), rtol=1e-11, atol=1e-12
    )


def stepped(
    settings: Settings, spec: PolicySpec, parameters: Parameters, samples: Samples
) -> Parameters:
    arrays = {name: value.numpy() for name, value in parameters.items()}
    found = compiled_step(settings, spec, arrays, [field.numpy() for field in samples])
    return {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize("inner", ["ratio", "log_prob"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_an_inner_step_is_autograds(spec: PolicySpec, inner: str, learn_inner_rates: bool) -> None:
    settings = settings_of(inner=inner, learn_inner_rates=learn_inner_rates)
    parameters, batch = problem(settings, spec)
    samples = mapped(lambda tensor: tensor[1], batch.support[0])
    losses = inner_losses(spec, settings.inner, (samples,))
    expected, _ = adapt(
        policy_part(parameters), losses, inner_rates(settings.inner, parameters, torch.exp)
    )
    found = stepped(settings, spec, parameters, samples)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, dict(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_single_precision_is_double_precision_rounded(spec: PolicySpec) -> None:
    settings = settings_of(steps=2)
    parameters, batch = problem(settings, spec, BLOCK)
    single = {name: value.float() for name, value in parameters.items()}
    exact = compiled_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)
    found = compiled_meta_gradient(
        MetaObjective(settings, spec, "second"), single, mapped(torch.Tensor.float, batch)
    )
    torch.testing.assert_close(
        (found[0], tuple(found[1]), found[2]),
        (exact[0], tuple(exact[1]), exact[2]),
        rtol=1e-4,
        atol=2e-5,
        check_dtype=False,
    )
    assert {value.dtype for value in found[2].values()} == {torch.float32}


@pytest.mark.parametrize("outer", ["ppo", "trpo", "reinforce"])
def test_the_value_alone_is_what_comes_with_the_gradient(outer: str) -> None:
    settings, spec = settings_of(outer, steps=2), SPECS["tanh"]
    told = (MetaObjective(settings, spec, "second"), *problem(settings, spec, BLOCK))
    *expected, _ = compiled_meta_gradient(*told)
    found = compiled_meta_value(*told)
    torch.testing.assert_close(found, tuple(expected), rtol=0.0, atol=0.0)


def test_a_task_alone_is_the_task_among_others() -> None:
    settings, spec = settings_of(), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    whole = compiled_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)
    alone = [
        compiled_meta_gradient(
            MetaObjective(settings, spec, "second"), parameters, sliced(batch, n, n + 1)
        )
        for n in range(3)
    ]
    mean = {name: sum(one[2][name] for one in alone) / 3 for name in parameters}
    torch.testing.assert_close(whole[2], mean, rtol=1e-13, atol=1e-15)
    largest = max(float(one[1].largest_ratio_error) for one in alone)
    assert float(whole[1].largest_ratio_error) == largest


def test_parameters_in_another_order_are_the_same() -> None:
    settings, spec = settings_of(learn_inner_rates=True), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    turned = dict(reversed(parameters.items()))
    samples = mapped(lambda tensor: tensor[1], batch.support[0])
    ours, theirs = (
        (
            compiled_meta_gradient(MetaObjective(settings, spec, "second"), each, batch)[2],
            stepped(settings, spec, each, samples),
        )
        for each in (parameters, turned)
    )
    assert list(theirs[0]) == list(turned)
    torch.testing.assert_close(theirs, ours, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("phase", ["support", "query"])
def test_what_is_no_number_is_told(phase: str) -> None:
    settings, spec = settings_of(), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    samples = batch.query if phase == "query" else batch.support[0]
    samples.advantages[1, 0, 2] = torch.nan
    loss, _, gradient = compiled_meta_gradient(
        MetaObjective(settings, spec, "second"), parameters, batch
    )
    assert loss.isnan()
    assert all(value.isnan().any() for value in gradient.values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_an_observation_that_is_no_number_passes_every_activation(spec: PolicySpec) -> None:
    settings = settings_of()
    parameters, batch = problem(settings, spec)
    batch.query.observations[0, 1, 0] = torch.nan
    assert compiled_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)[
        0
    ].isnan()


def test_a_ratio_that_is_no_number_is_the_largest_error() -> None:
    settings, spec = settings_of(), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    batch.query.log_probs[0, 0, 1] = torch.nan
    told = compiled_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)[1]
    assert told.largest_ratio_error.isnan()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_warm_loops_are_all_there_are(steps: int) -> None:
    # Another compilation in the middle of the first update is what a warm-up is to prevent.
    loops: list[Any] = [meta_gradient.meta_gradient, inner_step.policies]
    settings, spec = settings_of(steps=steps), SPECS["tanh"]
    warm_up(settings, spec)
    kinds = [len(loop.signatures) for loop in loops]
    parameters, batch = problem(settings, spec)
    single = {name: value.float() for name, value in parameters.items()}
    batch = mapped(torch.Tensor.float, batch)
    compiled_policies(settings, spec, single, batch.support, batch.query)
    compiled_meta_gradient(MetaObjective(settings, spec, "second"), single, batch)
    assert [len(loop.signatures) for loop in loops] == kinds
