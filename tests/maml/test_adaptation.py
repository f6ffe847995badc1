"""Inner steps on a part of the policy: the last layer (ANIL), or a context vector (as in CAVIA)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.backends.inner_step import make_inner_step
from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import InnerSettings
from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Samples
from maml_ray.maml.adaptation import adapt_to_task
from maml_ray.maml.distributions import Parameters, to_numpy, to_torch
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.maml.meta_parameters import (
    LOG_RATE,
    initial_meta_parameters,
    meta_parameter_shapes,
    policy_part,
)
from maml_ray.policies.context import CONTEXT_WEIGHT
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.samples import Support
from tests.learning_runs import same
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

SPEC = PolicySpec(3, 2, (4, 5), "tanh", 0.0, -3.0)
DISCRETE = PolicySpec(3, 4, (4,), "relu", 0.0, -3.0, discrete=True)
SPECS = [pytest.param(SPEC, id="gaussian"), pytest.param(DISCRETE, id="categorical")]


def settings_of(parameters: str, steps: int = 2, **more: Any) -> Settings:
    inner = {"parameters": parameters, "steps": steps, "learning_rate": 0.5, "context_size": 3}
    return validate_settings({"meta_batch": {"tasks": 1}, "inner": {**inner, **more}})


def problem(settings: Settings, spec: PolicySpec) -> tuple[Parameters, MetaBatch]:
    """Meta-parameters, and the data of one task."""
    rng = np.random.default_rng(0)
    policy = oracles.random_parameters(spec, rng)
    (task,) = meta_oracles.tasks_of(oracles.random_meta_batch(settings, spec, policy, rng))
    return oracles.meta_parameters(settings, policy, rng), task


def gain(policy: Any, samples: Samples[Tensor]) -> Tensor:
    """The inner objective: mean(ratio * advantage)."""
    ratio = torch.exp(meta_oracles.log_probs(policy, samples) - samples.log_probs)
    return (ratio * samples.advantages * samples.weights).sum()


def policy_with_context(
    spec: PolicySpec, parameters: Parameters, context: Tensor, observations: Tensor
) -> Any:
    """A policy that has the context's tanh as further observations, after the real ones."""
    inputs = torch.cat([observations, torch.tanh(context).expand(len(observations), -1)], 1)
    weight = torch.cat([parameters["hidden_0.weight"], parameters[CONTEXT_WEIGHT]], 1)
    return meta_oracles.action_distribution(spec, {**parameters, "hidden_0.weight": weight}, inputs)


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_a_context_is_a_further_input_that_starts_at_zero(
    spec: PolicySpec, learn_inner_rates: bool
) -> None:
    """The adapted policy's outputs and their derivatives by every meta-parameter."""
    settings = settings_of("context", learn_inner_rates=learn_inner_rates)
    parameters, task = problem(settings, spec)
    observations, gradient = task.query.observations, task.context_gradient

    def by_input(parameters: Parameters) -> Tensor:
        rate: Tensor | float = settings.inner.learning_rate
        if learn_inner_rates:
            rate = parameters["log_inner_rate/context"].exp()
        return outputs(policy_with_context(spec, parameters, rate * gradient, observations))

    def by_bias(parameters: Parameters) -> Tensor:
        adapted, before = adapt_to_task(settings.inner, spec, parameters, (), gradient)
        assert before == ()
        return outputs(meta_oracles.action_distribution(spec, adapted, observations))

    torch.testing.assert_close(by_bias(parameters), by_input(parameters))
    probe = torch.from_numpy(np.random.default_rng(1).standard_normal(by_bias(parameters).shape))
    expected = oracles.gradient(lambda theta: (by_input(theta) * probe).sum(), parameters)
    found = oracles.gradient(lambda theta: (by_bias(theta) * probe).sum(), parameters)
    assert float(expected[CONTEXT_WEIGHT].abs().max()) > 1e-3
    torch.testing.assert_close(found, expected)


def outputs(policy: Any) -> Tensor:
    result: Tensor = (
        policy.logits if isinstance(policy, torch.distributions.Categorical) else policy.mean
    )
    return result


@pytest.mark.parametrize("spec", SPECS)
def test_only_the_last_layer_takes_steps(spec: PolicySpec) -> None:
    """As with a loop that has no other leaves; the body has gradients of second order."""
    settings = settings_of("head")
    parameters, task = problem(settings, spec)
    support = task.support
    head = (f"{spec.head}.weight", f"{spec.head}.bias")

    def slow(parameters: Parameters) -> Parameters:
        theta = dict(parameters)
        for samples in support:
            policy = meta_oracles.action_distribution(spec, theta, samples.observations)
            leaves = [theta[name] for name in head]
            leaves = [leaf if leaf.requires_grad else leaf.requires_grad_() for leaf in leaves]
            slopes = torch.autograd.grad(gain(policy, samples), leaves, create_graph=True)
            for name, slope in zip(head, slopes, strict=True):
                theta[name] = theta[name] + settings.inner.learning_rate * slope
        return theta

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    expected = slow(leaves)
    found, _ = adapt_to_task(settings.inner, spec, leaves, support)
    torch.testing.assert_close(found, expected)
    for name in parameters:
        assert (found[name] is leaves[name]) is (name not in head)
    rng = np.random.default_rng(1)
    probes = [torch.from_numpy(rng.standard_normal(parameters[name].shape)) for name in head]
    body = leaves["hidden_0.weight"]
    slopes = [
        torch.autograd.grad([theta[name] for name in head], body, probes)[0]
        for theta in (found, expected)
    ]
    assert float(slopes[0].abs().max()) > 1e-4
    torch.testing.assert_close(*slopes)
    first, _ = adapt_to_task(settings.inner, spec, leaves, support, order="first")
    outcome = sum(first[name].sum() for name in head)
    assert isinstance(outcome, Tensor)
    (slope,) = torch.autograd.grad(outcome, body, allow_unused=True, materialize_grads=True)
    assert float(slope.abs().max()) == 0.0


@pytest.mark.parametrize("objective", ["ratio", "dice"])
def test_a_workers_steps_one_by_one_are_the_learners_together(objective: str) -> None:
    settings = settings_of("head", steps=3, objective=objective, learning_rate=2.0)
    theta, task = problem(settings, SPEC)
    together, _ = adapt_to_task(settings.inner, SPEC, theta, task.support)
    support = [Samples(*(field.float().numpy() for field in one)) for one in task.support]
    check_steps(settings, SPEC, theta, support, together, {"mean.weight", "mean.bias"})


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_so_are_those_of_a_context(spec: PolicySpec, learn_inner_rates: bool) -> None:
    """It goes with the parameters from step to step, as the mean of what these would lead to."""
    settings = settings_of("context", learn_inner_rates=learn_inner_rates, learning_rate=2.0)
    theta, _ = problem(settings, spec)
    gradients = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
    mean = torch.from_numpy(gradients.mean(axis=0)).double()
    together, _ = adapt_to_task(settings.inner, spec, theta, (), mean)
    check_steps(settings, spec, theta, gradients, together, {"hidden_0.bias"})


def check_steps(
    settings: Settings,
    spec: PolicySpec,
    theta: Parameters,
    support: Iterable[Support],
    together: Parameters,
    moving: set[str],
) -> None:
    """Steps of a worker, one after the other, end where ``together`` is, and move no more."""
    arrays, step = to_numpy(theta), make_inner_step(settings.inner, spec)
    for number, one in enumerate(support):
        arrays = step(arrays, one, number)
    assert set(arrays) == {*theta, *together}
    assert {name for name in theta if not same_array(arrays[name], theta[name])} == moving
    torch.testing.assert_close(
        {name: to_torch(arrays)[name] for name in together},
        {name: value.float() for name, value in together.items()},
        rtol=1e-4,
        atol=1e-5,
    )


def same_array(found: NDArray[np.float32], before: Tensor) -> bool:
    return np.array_equal(found, before.float().numpy())


def test_the_contexts_weights_are_drawn_last_with_their_variance() -> None:
    inner = InnerSettings(parameters="context", context_size=200, context_variance=0.5)
    spec = PolicySpec(3, 2, (100,), "tanh", 0.0, -3.0)
    parameters = initial_meta_parameters(spec, inner, np.random.default_rng(0))
    assert same(policy_part(parameters), initial_parameters(spec, np.random.default_rng(0)))
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    assert shapes == meta_parameter_shapes(spec, inner)
    weight = parameters[CONTEXT_WEIGHT]
    assert weight.dtype == np.float32
    assert float(weight.mean()) == pytest.approx(0.0, abs=0.003)
    assert float((weight**2).sum(axis=1).mean()) == pytest.approx(0.5, abs=0.015)


def test_one_rate_is_learned_for_each_number_of_a_context() -> None:
    inner = InnerSettings(
        parameters="context", context_size=3, learn_inner_rates=True, learning_rate=5.0
    )
    parameters = initial_meta_parameters(SPEC, inner, np.random.default_rng(0))
    assert list(parameters) == [*SPEC.shapes(), f"{LOG_RATE}context", CONTEXT_WEIGHT]
    assert list(meta_parameter_shapes(SPEC, inner)) == list(parameters)
    np.testing.assert_allclose(np.exp(parameters[f"{LOG_RATE}context"]), [5.0, 5.0, 5.0], rtol=1e-6)
    fixed = inner.model_copy(update={"learn_inner_rates": False})
    alone = initial_meta_parameters(SPEC, fixed, np.random.default_rng(0))
    assert same({name: parameters[name] for name in alone}, alone)


@pytest.mark.parametrize("spec", SPECS)
def test_rates_are_learned_for_the_last_layer_alone(spec: PolicySpec) -> None:
    inner = InnerSettings(parameters="head", learn_inner_rates=True)
    parameters = initial_meta_parameters(spec, inner, np.random.default_rng(0))
    rates = [name for name in parameters if name.startswith(LOG_RATE)]
    assert rates == [f"{LOG_RATE}{spec.head}.weight", f"{LOG_RATE}{spec.head}.bias"]
    assert set(policy_part(parameters)) == set(spec.shapes())
