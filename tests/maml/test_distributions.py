from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl

from maml_ray.config.sections import PolicySettings
from maml_ray.maml.distributions import (
    ActionDistribution,
    Categorical,
    Gaussian,
    distribution,
    entropy,
    fisher_product,
    kl_divergence,
    log_prob,
    project,
    to_numpy,
    to_torch,
)
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import LOG_STD, PolicySpec, initial_parameters
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles


def spec_of(
    observation_size: int = 4,
    action_size: int = 2,
    hidden_sizes: tuple[int, ...] = (8, 8),
    activation: str = "tanh",
    min_log_std: float = -3.0,
) -> PolicySpec:
    return PolicySpec(observation_size, action_size, hidden_sizes, activation, 0.0, min_log_std)


specs = st.builds(
    spec_of,
    observation_size=st.integers(1, 20),
    action_size=st.integers(1, 8),
    hidden_sizes=st.lists(st.integers(1, 16), max_size=3).map(tuple),
    activation=st.sampled_from(["tanh", "relu"]),
    min_log_std=st.sampled_from([-3.0, -0.2]),
)
seeds = st.integers(0, 2**32)


def box(*shape: int) -> Box:
    return Box(-np.inf, np.inf, shape, np.float32)


def random_gaussian(rng: np.random.Generator, *shape: int) -> Gaussian[torch.Tensor]:
    mean = torch.from_numpy(rng.standard_normal(shape))
    return Gaussian(mean, torch.from_numpy(0.5 * rng.standard_normal(shape[-1])))


def reference(gaussian: Gaussian[torch.Tensor]) -> Any:
    std = gaussian.log_std.exp().expand_as(gaussian.mean)
    return Independent(Normal(gaussian.mean, std), 1)


@given(seed=seeds, batch=st.lists(st.integers(1, 4), max_size=3), actions=st.integers(1, 8))
def test_log_prob_kl_and_entropy_are_those_of_torch(
    seed: int, batch: list[int], actions: int
) -> None:
    rng = np.random.default_rng(seed)
    old, new = random_gaussian(rng, *batch, actions), random_gaussian(rng, *batch, actions)
    taken = torch.from_numpy(3.0 * rng.standard_normal((*batch, actions)))
    torch.testing.assert_close(log_prob(old, taken), reference(old).log_prob(taken))
    torch.testing.assert_close(kl_divergence(old, new), torch_kl(reference(old), reference(new)))
    expected = reference(Gaussian(torch.zeros(actions).double(), old.log_std)).entropy()
    torch.testing.assert_close(entropy(old), expected)


def test_log_probabilities_are_summed_over_action_dimensions() -> None:
    one = log_prob(Gaussian(torch.zeros(1), torch.zeros(1)), torch.ones(1))
    six = log_prob(Gaussian(torch.zeros(6), torch.zeros(6)), torch.ones(6))
    assert float(one) == pytest.approx(-0.5 - 0.5 * math.log(2 * math.pi))
    assert float(six) == pytest.approx(6 * float(one))


def test_kl_of_a_policy_with_itself_is_exactly_zero() -> None:
    gaussian = random_gaussian(np.random.default_rng(0), 5, 3)
    assert (kl_divergence(gaussian, gaussian) == 0).all()


@given(spec=specs, seed=seeds)
def test_the_policy_is_the_network_written_out(spec: PolicySpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parameters = oracles.random_parameters(spec, rng)
    observations = torch.from_numpy(rng.standard_normal((7, spec.observation_size)))
    actual = distribution(spec, parameters, observations)
    assert isinstance(actual, Gaussian)
    expected = meta_oracles.action_distribution(spec, parameters, observations).base_dist
    torch.testing.assert_close(actual.mean, expected.mean)
    torch.testing.assert_close(actual.log_std.exp().expand_as(actual.mean), expected.stddev)


@given(spec=specs, seed=seeds)
def test_numpy_twin_agrees_with_torch(spec: PolicySpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parameters = {k: v.float() for k, v in oracles.random_parameters(spec, rng, 0.3).items()}
    observations = rng.standard_normal((5, spec.observation_size)).astype(np.float32)
    twin = NumpyPolicy(spec, to_numpy(parameters))
    gaussian = distribution(spec, parameters, torch.from_numpy(observations))
    mean = twin.forward(observations)
    assert isinstance(gaussian, Gaussian)
    assert mean.dtype == twin.std.dtype == np.float32
    np.testing.assert_allclose(mean, gaussian.mean.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twin.std, gaussian.log_std.exp().numpy(), rtol=1e-6)


def test_numpy_twin_leaves_observations_and_parameters_alone() -> None:
    spec = spec_of(hidden_sizes=())
    parameters = initial_parameters(spec, np.random.default_rng(0))
    saved = {name: value.copy() for name, value in parameters.items()}
    observations = np.ones((3, 4), np.float32)
    NumpyPolicy(spec, parameters).forward(observations)
    np.testing.assert_array_equal(observations, 1.0)
    for name, value in saved.items():
        np.testing.assert_array_equal(parameters[name], value)


def test_one_observation_needs_no_batch() -> None:
    spec = spec_of()
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    observations = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    single = policy.forward(observations[1])
    assert single.shape == (2,)
    np.testing.assert_allclose(single, policy.forward(observations)[1], rtol=1e-5, atol=1e-8)


def gaussian_of(spec: PolicySpec, parameters: dict[str, torch.Tensor]) -> Gaussian[torch.Tensor]:
    policy = distribution(spec, parameters, torch.zeros(1, 4))
    assert isinstance(policy, Gaussian)
    return policy


def test_the_floor_clamps_and_lets_the_gradient_pass_again_after_project() -> None:
    spec = spec_of(min_log_std=-1.0)
    parameters = to_torch(initial_parameters(spec, np.random.default_rng(0)))
    parameters[LOG_STD] = torch.tensor([-2.0, 0.0], requires_grad=True)

    def slope() -> list[bool]:
        gaussian = gaussian_of(spec, parameters)
        loss = log_prob(gaussian, torch.full((1, 2), 2.0)).sum()
        (gradient,) = torch.autograd.grad(loss, parameters[LOG_STD])
        return [bool(value) for value in gradient != 0]

    assert gaussian_of(spec, parameters).log_std.tolist() == [-1.0, 0.0]
    assert slope() == [False, True]
    project(spec, parameters)
    assert parameters[LOG_STD].tolist() == [-1.0, 0.0]
    assert parameters[LOG_STD].requires_grad
    assert slope() == [True, True]


def test_the_start_on_the_floor_lets_the_gradient_pass() -> None:
    spec = PolicySpec(4, 2, (), "tanh", -2.3, -2.3)  # not a float32 number
    parameters = to_torch(initial_parameters(spec, np.random.default_rng(0)))
    log_std = parameters[LOG_STD].requires_grad_()
    gaussian = distribution(spec, parameters, torch.zeros(1, 4))
    loss = log_prob(gaussian, torch.full((1, 2), 2.0)).sum()
    assert (torch.autograd.grad(loss, log_std)[0] != 0).all()


def test_numbers_are_copied_both_ways() -> None:
    spec = spec_of()
    parameters = to_torch(initial_parameters(spec, np.random.default_rng(0)))
    arrays = to_numpy(parameters)
    tensors = to_torch(arrays)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        array += 1.0
        torch.testing.assert_close(tensors[name], parameters[name], rtol=0, atol=0)
        assert (torch.from_numpy(array) != parameters[name]).all()


def test_read_only_numbers_are_taken() -> None:
    """Ray hands out read-only arrays."""
    arrays = initial_parameters(spec_of(), np.random.default_rng(0))
    for array in arrays.values():
        array.flags.writeable = False
    tensors = to_torch(arrays)
    tensors[LOG_STD].add_(1.0)
    np.testing.assert_array_equal(arrays[LOG_STD], 0.0)


def test_initial_parameters() -> None:
    settings = PolicySettings(hidden_sizes=(64, 32), initial_log_std=-0.5)
    spec = PolicySpec.from_spaces(settings, box(17), box(6))
    parameters = initial_parameters(spec, np.random.default_rng(0))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == spec.shapes()
    assert list(parameters) == [
        *(f"{layer}.{kind}" for layer in spec.layer_names for kind in ("weight", "bias")),
        LOG_STD,
    ]
    assert (parameters[LOG_STD] == -0.5).all()
    assert all((v == 0).all() for name, v in parameters.items() if name.endswith("bias"))
    first = np.abs(parameters["hidden_0.weight"]).max()
    assert 0.9 * math.sqrt(6 / 81) < float(first) <= math.sqrt(6 / 81)
    assert float(np.abs(parameters["mean.weight"]).max()) <= 0.01 * math.sqrt(6 / 38)
    again = initial_parameters(spec, np.random.default_rng(0))
    assert all(np.array_equal(parameters[name], again[name]) for name in parameters)


def test_observations_of_another_size_are_refused() -> None:
    spec = spec_of()
    parameters = to_torch(initial_parameters(spec, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="size 4"):
        distribution(spec, parameters, torch.zeros(3, 5))


# Discrete actions


def discrete(actions: int = 5, observation_size: int = 4, first: int = 0) -> PolicySpec:
    return PolicySpec(
        observation_size, actions, (8,), "tanh", 0.0, -3.0, discrete=True, first_action=first
    )


def random_categorical(rng: np.random.Generator, *shape: int) -> Categorical:
    return Categorical(torch.log_softmax(torch.from_numpy(2.0 * rng.standard_normal(shape)), -1))


@given(seed=seeds, batch=st.lists(st.integers(1, 4), max_size=3), actions=st.integers(1, 8))
def test_a_categorical_policy_is_that_of_torch(seed: int, batch: list[int], actions: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = random_categorical(rng, *batch, actions), random_categorical(rng, *batch, actions)
    taken = torch.from_numpy(rng.integers(0, actions, (*batch, 1))).float()  # as recorded
    expected, other = (torch.distributions.Categorical(logits=p.log_probs) for p in (old, new))
    torch.testing.assert_close(log_prob(old, taken), expected.log_prob(taken[..., 0]))
    torch.testing.assert_close(kl_divergence(old, new), torch_kl(expected, other))
    torch.testing.assert_close(entropy(old), expected.entropy())
    assert (kl_divergence(old, old) == 0).all()


@given(seed=seeds, actions=st.integers(1, 6), activation=st.sampled_from(["tanh", "relu"]))
def test_the_categorical_policy_is_the_network_written_out(
    seed: int, actions: int, activation: str
) -> None:
    rng = np.random.default_rng(seed)
    spec = replace(discrete(actions), activation=activation)
    parameters = {k: v.float() for k, v in oracles.random_parameters(spec, rng).items()}
    observations = rng.standard_normal((7, 4)).astype(np.float32)
    actual = distribution(spec, parameters, torch.from_numpy(observations))
    assert isinstance(actual, Categorical)
    torch.testing.assert_close(actual.log_probs.exp().sum(-1), torch.ones(7))
    expected = meta_oracles.action_distribution(spec, parameters, torch.from_numpy(observations))
    torch.testing.assert_close(actual.log_probs, expected.logits)
    logits = torch.from_numpy(NumpyPolicy(spec, to_numpy(parameters)).forward(observations))
    torch.testing.assert_close(torch.log_softmax(logits, -1), expected.logits)


def test_two_kinds_of_distribution_have_no_divergence_and_no_product() -> None:
    rng = np.random.default_rng(0)
    gaussian, categorical = random_gaussian(rng, 3, 2), random_categorical(rng, 3, 2)
    pairs: list[tuple[ActionDistribution, ActionDistribution]]
    pairs = [(gaussian, categorical), (categorical, gaussian)]
    for one, other in pairs:
        with pytest.raises(TypeError, match="both"):
            kl_divergence(one, other)
        with pytest.raises(TypeError, match="both"):
            fisher_product(one, other, torch.ones(3))


def test_a_fresh_categorical_policy_is_all_but_uniform_and_has_no_deviation() -> None:
    spec = discrete()
    parameters = to_torch(initial_parameters(spec, np.random.default_rng(0)))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == spec.shapes()
    assert list(parameters)[-2:] == ["logits.weight", "logits.bias"]
    project(spec, parameters)  # has nothing to do
    policy = distribution(spec, parameters, torch.ones(1, 4))
    assert isinstance(policy, Categorical)
    torch.testing.assert_close(policy.log_probs.exp(), torch.full((1, 5), 0.2), atol=0.01, rtol=0)
    assert float(entropy(policy)) == pytest.approx(math.log(5), abs=1e-3)


def test_sizes_are_read_off_the_spaces() -> None:
    settings = PolicySettings(hidden_sizes=(7,), activation="relu", action_scale=2.5)
    continuous = PolicySpec.from_spaces(settings, box(3), box(2))
    unbounded = replace(continuous, action_bounds=None)  # see tests/policies/test_action_bounds.py
    assert unbounded == PolicySpec(3, 2, (7,), "relu", 0.0, -3.0, action_scale=2.5)
    assert (continuous.head, continuous.recorded_action_size) == ("mean", 2)
    chosen = PolicySpec.from_spaces(settings, box(3), Discrete(4, start=-1))
    assert (chosen.discrete, chosen.action_size, chosen.first_action) == (True, 4, -1)
    assert (chosen.head, chosen.recorded_action_size) == ("logits", 1)
    assert chosen.shapes()["logits.weight"] == (4, 7)
    assert LOG_STD not in chosen.shapes()


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (Discrete(3), box(2), "observations must be a Box"),
        (box(3, 3), box(2), "observations must be a Box with one axis"),
        (box(3), box(2, 2), "actions must be Discrete or a Box"),
        (box(3), MultiDiscrete([2, 2]), "actions must be Discrete or a Box"),
    ],
)
def test_other_spaces_are_refused_by_name(observations: Any, actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicySpec.from_spaces(PolicySettings(), observations, actions)


def hessian_of_kl(policy: ActionDistribution, weights: torch.Tensor) -> torch.Tensor:
    """Of ``sum(weights * KL)`` at equality, with respect to all numbers of the second policy."""
    kind, shapes = type(policy), [part.shape for part in policy]
    sizes = [part.numel() for part in policy]

    def divergence(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split(sizes)
        new = kind(*(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)))
        if isinstance(new, Categorical):  # any numbers are logits
            new = Categorical(torch.log_softmax(new.log_probs, -1))
        return (weights * kl_divergence(policy, new)).sum()

    at = torch.cat([part.reshape(-1) for part in policy])
    hessian: torch.Tensor = torch.func.hessian(divergence)(at)
    return hessian


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_the_fisher_product_is_the_hessian_of_the_divergence(kind: str) -> None:
    rng = np.random.default_rng(3)
    draw = random_gaussian if kind == "gaussian" else random_categorical
    policy, weights = draw(rng, 4, 3), torch.from_numpy(rng.random(4))
    change = type(policy)(*(torch.from_numpy(rng.standard_normal(p.shape)) for p in policy))
    if isinstance(change, Categorical):  # what normalized log-probabilities can do
        probabilities = policy.log_probs.exp()  # type: ignore[union-attr]
        mean = (probabilities * change.log_probs).sum(-1, keepdim=True)
        change = Categorical(change.log_probs - mean)
    product = fisher_product(policy, change, weights)
    actual = torch.cat([part.reshape(-1) for part in product])
    tangent = torch.cat([part.reshape(-1) for part in change])
    torch.testing.assert_close(actual, hessian_of_kl(policy, weights) @ tangent)
