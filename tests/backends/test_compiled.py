"""What the compiled backend gives beside the meta-gradient, which test_agreement compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.backends.compiled_inner import compiled_inner_step
from maml_ray.backends.tensor_tree import slice_rows, tree_map
from maml_ray.config.sections import OuterSettings
from maml_ray.config.settings import Settings
from maml_ray.kernels import fisher, inner_step, meta_gradient
from maml_ray.kernels.blocks import BLOCK
from maml_ray.kernels.types import Samples
from maml_ray.maml.adaptation import adapt_to_task
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import OUTER_OBJECTIVES, OuterObjective
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_agreement import SPECS, backend, problem, settings_of

ORDERS: list[Order] = ["second", "first"]


def value_and_grad(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch
) -> tuple[Tensor, Diagnostics, Parameters]:
    compiled = backend(CompiledBackend, settings, spec)
    return compiled.value_and_grad(parameters, batch, "second")


@pytest.mark.parametrize(("part", "steps"), [("all", 0), ("all", 1), ("all", 2), ("context", 2)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_policies_on_the_way(spec: PolicySpec, part: str, steps: int) -> None:
    if part == "context" and not spec.hidden_sizes:
        pytest.skip("refused by the settings")
    settings = settings_of(steps=steps, parameters=part)
    parameters, batch = problem(settings, spec, BLOCK)
    data = batch.support, batch.query, batch.context_gradient
    expected, found = (
        backend(kind, settings, spec).behavior_policies(parameters, *data)
        for kind in (AutogradBackend, CompiledBackend)
    )
    tree_map(torch.testing.assert_close, as_pairs(found), as_pairs(expected))


def as_pairs(policies: Any) -> Any:
    """Means and log standard deviations of each phase, of the same shapes from either backend."""
    support, query = policies
    return tuple(
        (policy.mean, policy.log_std.expand(len(policy.mean), -1)) for policy in (*support, query)
    )


def stepped(
    settings: Settings, spec: PolicySpec, parameters: Parameters, samples: Samples[Tensor]
) -> Parameters:
    arrays = {name: value.numpy() for name, value in parameters.items()}
    support = Samples(*(field.numpy() for field in samples))
    adapted = compiled_inner_step(settings.inner, spec, arrays, support)
    return {name: torch.from_numpy(value) for name, value in adapted.items()}


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize("part", ["all", "head"])
@pytest.mark.parametrize("inner", ["ratio", "log_prob"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_an_inner_step_is_autograds(
    spec: PolicySpec, inner: str, part: str, learn_inner_rates: bool
) -> None:
    settings = settings_of(inner=inner, parameters=part, learn_inner_rates=learn_inner_rates)
    parameters, batch = problem(settings, spec)
    samples = tree_map(lambda tensor: tensor[1], batch.support[0])
    expected, _ = adapt_to_task(settings.inner, spec, parameters, (samples,))
    found = stepped(settings, spec, parameters, samples)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, dict(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_single_precision_is_double_precision_rounded(spec: PolicySpec) -> None:
    settings = settings_of(steps=2)
    parameters, batch = problem(settings, spec, BLOCK)
    single = {name: value.float() for name, value in parameters.items()}
    exact = value_and_grad(settings, spec, parameters, batch)
    found = value_and_grad(settings, spec, single, tree_map(torch.Tensor.float, batch))
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
    compiled, data = backend(CompiledBackend, settings, spec), problem(settings, spec, BLOCK)
    *expected, _ = compiled.value_and_grad(*data, "second")
    found = compiled.value(*data, "second")
    torch.testing.assert_close(found, tuple(expected), rtol=0.0, atol=0.0)


def test_a_task_alone_is_the_task_among_others() -> None:
    settings, spec = settings_of(), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    whole = value_and_grad(settings, spec, parameters, batch)
    alone = [
        value_and_grad(settings, spec, parameters, slice_rows(batch, n, n + 1)) for n in range(3)
    ]
    mean = {name: sum(one[2][name] for one in alone) / 3 for name in parameters}
    torch.testing.assert_close(whole[2], mean, rtol=1e-13, atol=1e-15)
    largest = max(float(one[1].max_ratio_error) for one in alone)
    assert float(whole[1].max_ratio_error) == largest


def test_parameters_in_another_order_are_the_same() -> None:
    settings, spec = settings_of(learn_inner_rates=True), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    turned = dict(reversed(parameters.items()))
    samples = tree_map(lambda tensor: tensor[1], batch.support[0])
    ours, theirs = (
        (
            value_and_grad(settings, spec, each, batch)[2],
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
    loss, _, gradient = value_and_grad(settings, spec, parameters, batch)
    assert loss.isnan()
    assert all(value.isnan().any() for value in gradient.values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_an_observation_that_is_no_number_passes_every_activation(spec: PolicySpec) -> None:
    settings = settings_of()
    parameters, batch = problem(settings, spec)
    batch.query.observations[0, 1, 0] = torch.nan
    assert value_and_grad(settings, spec, parameters, batch)[0].isnan()


def test_a_ratio_that_is_no_number_is_the_largest_error() -> None:
    settings, spec = settings_of(), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    batch.query.log_probs[0, 0, 1] = torch.nan
    diagnostics = value_and_grad(settings, spec, parameters, batch)[1]
    assert diagnostics.max_ratio_error.isnan()


@pytest.mark.parametrize("part", ["all", "context"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_warm_up_compiles_all_that_an_update_needs(steps: int, part: str) -> None:
    # Another compilation in the middle of the first update is what a warm-up is to prevent.
    kernels: list[Any] = [
        inner_step.take_step,
        inner_step.step_vjp,
        inner_step.step_jvp,
        meta_gradient.evaluate_query,
        meta_gradient.query_vjp,
        fisher.fisher_product,
    ]
    settings, spec = settings_of("trpo", steps=steps, parameters=part), SPECS["tanh"]
    compiled = backend(CompiledBackend, settings, spec)
    compiled.warm_up()
    kinds = [len(kernel.signatures) for kernel in kernels]
    parameters, batch = problem(settings, spec)
    single = {name: value.float() for name, value in parameters.items()}
    batch = tree_map(torch.Tensor.float, batch)
    compiled.behavior_policies(single, batch.support, batch.query, batch.context_gradient)
    for order in ORDERS:
        compiled.value_and_grad(single, batch, order)
        product = compiled.linearize(single, batch, order).fisher_product
        product(torch.ones(sum(value.numel() for value in single.values())))
    assert [len(kernel.signatures) for kernel in kernels] == kinds


@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_tasks_in_several_groups_are_those_of_one(
    monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """A group shares an evaluation of the loss: of three tasks, two and then one."""
    settings, spec = settings_of(objective), SPECS["tanh"]
    data = problem(settings, spec)
    compiled = backend(CompiledBackend, settings, spec)
    whole, rows = compiled.value_and_grad(*data, "second"), compiled.per_task_grads(*data, "second")
    monkeypatch.setattr("maml_ray.backends.compiled._MIN_GROUP", 1)
    groups = compiled.value_and_grad(*data, "second")
    torch.testing.assert_close(groups, whole, rtol=0.0, atol=0.0)
    torch.testing.assert_close(compiled.per_task_grads(*data, "second"), rows, rtol=0.0, atol=0.0)


def test_a_loss_that_is_not_a_number_for_each_task_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Summed over tasks, too, it would be the loss of all of them for each."""

    def summed(log_probs: Tensor, samples: Samples[Tensor], outer: OuterSettings) -> Tensor:
        return -(log_probs * samples.weights).sum()

    monkeypatch.setitem(OUTER_OBJECTIVES, "summed", OuterObjective(summed))
    settings, spec = settings_of(), SPECS["tanh"]
    outer = settings.outer.model_copy(update={"objective": "summed"})
    settings = settings.model_copy(update={"outer": outer})
    compiled = backend(CompiledBackend, settings, spec)
    with pytest.raises(ValueError, match=r"'summed' has shape \(\) .*sum over the last two axes"):
        compiled.value_and_grad(*problem(settings, spec), "second")
