"""From a policy's outputs to actions: noise, log-probabilities, the environment's actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maml_ray.maml.distributions import distribution, log_prob, to_numpy
from maml_ray.policies.action_bounds import ActionBounds
from maml_ray.policies.action_sampler import make_sampler, to_env_actions
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters

GAUSSIAN = PolicySpec(4, 3, (8,), "tanh", 0.0, -3.0)
CATEGORICAL = replace(GAUSSIAN, discrete=True)
SPECS = [pytest.param(GAUSSIAN, id="gaussian"), pytest.param(CATEGORICAL, id="categorical")]


def policy_of(spec: PolicySpec, seed: int = 0) -> tuple[NumpyPolicy, Parameters]:
    parameters = oracles.random_parameters(spec, np.random.default_rng(seed), 0.7)
    parameters = {name: value.float() for name, value in parameters.items()}
    return NumpyPolicy(spec, to_numpy(parameters)), parameters


def sampled(
    policy: NumpyPolicy, observations: NDArray[np.float32], seed: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Actions (T, K, n) and log-probabilities (T, K) at ``observations`` (T, K, D)."""
    steps, episodes = observations.shape[:2]
    rng = None if seed is None else np.random.default_rng(seed)
    sampler = make_sampler(policy, steps, episodes, rng)
    actions = [sampler.act(step, observations[step]) for step in range(steps)]
    return np.array(actions), sampler.log_probs()


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_recorded_log_probs_are_those_that_torch_recomputes(
    spec: PolicySpec, explore: bool
) -> None:
    policy, parameters = policy_of(spec)
    observations = np.random.default_rng(1).standard_normal((50, 6, 4)).astype(np.float32)
    actions, recorded = sampled(policy, observations, 2 if explore else None)
    assert actions.dtype == recorded.dtype == np.float32
    assert actions.shape == (50, 6, spec.recorded_action_size)
    there = distribution(spec, parameters, torch.from_numpy(observations))
    expected = log_prob(there, torch.from_numpy(actions))
    np.testing.assert_allclose(recorded, expected.numpy(), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1.0, 100.0, 1e4]))
def test_log_probs_of_extreme_logits_are_finite(seed: int, scale: float) -> None:
    _, parameters = policy_of(CATEGORICAL, seed)
    arrays = to_numpy(parameters)
    arrays["logits.weight"] *= np.float32(scale)
    observations = np.random.default_rng(seed).standard_normal((5, 6, 4)).astype(np.float32)
    _, recorded = sampled(NumpyPolicy(CATEGORICAL, arrays), observations, 3)
    assert np.isfinite(recorded).all()
    assert (recorded <= 1e-6).all()


def test_discrete_actions_are_as_frequent_as_probable() -> None:
    """Chi-squared with 3 degrees of freedom: 16.3 is passed once in a thousand seeds."""
    spec = replace(CATEGORICAL, action_size=4)
    policy, parameters = policy_of(spec)
    one = np.random.default_rng(1).standard_normal(4).astype(np.float32)
    observations = np.broadcast_to(one, (100, 200, 4)).copy()
    actions, _ = sampled(policy, observations, 2)
    counts = np.bincount(actions.astype(int).ravel(), minlength=4)
    probabilities = distribution(spec, parameters, torch.from_numpy(one))[0].exp().numpy()
    expected = 20_000 * probabilities.astype(np.float64)
    assert counts.sum() == 20_000
    assert expected.min() > 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3


def test_gaussian_noise_is_standard_normal_times_the_deviation() -> None:
    policy, _ = policy_of(GAUSSIAN)
    observations = np.zeros((100, 200, 4), np.float32)
    noise = (sampled(policy, observations, 2)[0] - policy.forward(observations)) / policy.std
    np.testing.assert_allclose(noise.mean(axis=(0, 1)), 0.0, atol=0.03)
    np.testing.assert_allclose(np.cov(noise.reshape(-1, 3).T), np.eye(3), atol=0.03)


@pytest.mark.parametrize("spec", SPECS)
def test_without_noise_the_mean_or_the_most_probable_action_is_taken(spec: PolicySpec) -> None:
    policy, parameters = policy_of(spec)
    observations = np.random.default_rng(1).standard_normal((20, 6, 4)).astype(np.float32)
    actions, _ = sampled(policy, observations, None)
    output = distribution(spec, parameters, torch.from_numpy(observations))[0]
    best = output.argmax(-1, keepdim=True) if spec.discrete else output
    np.testing.assert_allclose(actions, best.numpy(), rtol=1e-4, atol=1e-5)
    if spec.discrete:
        assert len(np.unique(actions)) == 3


@pytest.mark.parametrize("spec", SPECS)
def test_noise_is_a_matter_of_the_seed_and_each_step_and_episode_has_its_own(
    spec: PolicySpec,
) -> None:
    policy, _ = policy_of(spec)
    observations = np.zeros((40, 30, 4), np.float32)
    first, second, other = (sampled(policy, observations, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert (first != first[:1]).any()
    assert (first != first[:, :1]).any()


def test_an_episode_does_not_depend_on_what_the_others_see() -> None:
    for spec in (GAUSSIAN, CATEGORICAL):
        policy, _ = policy_of(spec)
        observations = np.random.default_rng(1).standard_normal((8, 5, 4)).astype(np.float32)
        changed = observations.copy()
        changed[:, 2:] += 1.0
        for one, other in zip(
            sampled(policy, observations, 3), sampled(policy, changed, 3), strict=True
        ):
            np.testing.assert_array_equal(one[:, :2], other[:, :2])


def test_the_environment_gets_integers_from_its_own_first_one() -> None:
    recorded = np.array([[0.0], [2.0], [1.0]], np.float32)
    given = to_env_actions(replace(CATEGORICAL, first_action=-1), recorded)
    assert given.dtype == np.int64
    assert given.tolist() == [-1, 1, 0]
    assert to_env_actions(CATEGORICAL, recorded).tolist() == [0, 2, 1]


def test_the_environment_gets_continuous_actions_scaled() -> None:
    recorded = np.array([[0.5, -1.0, 2.0]], np.float32)
    given = to_env_actions(replace(GAUSSIAN, action_scale=2.5), recorded)
    assert given.dtype == np.float32
    assert given.tolist() == [[1.25, -2.5, 5.0]]
    assert recorded.tolist() == [[0.5, -1.0, 2.0]]
    assert to_env_actions(GAUSSIAN, recorded).tolist() == recorded.tolist()


def test_a_kernel_acts_as_its_sampler_and_discrete_actions_have_none() -> None:
    policy, _ = policy_of(replace(GAUSSIAN, action_scale=2.5))
    sampler = make_sampler(policy, 3, 5, np.random.default_rng(0))
    kernel = sampler.kernel()
    assert kernel is not None
    assert kernel.action_map.factor.tolist() == [2.5] * 3
    observations = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    for step in range(3):
        acted = kernel.network.forward(observations) + kernel.noise[step]
        np.testing.assert_array_equal(acted, sampler.act(step, observations))
    assert make_sampler(policy_of(CATEGORICAL)[0], 3, 5, None).kernel() is None


@pytest.mark.parametrize(
    "bounds",
    [
        ActionBounds("rescale", (0.0, -1.0, -1.0), (1.0, 1.0, 1.0), "float32"),
        ActionBounds("clip", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), "float64"),
    ],
)
def test_what_a_kernel_would_round_differently_is_stepped(bounds: ActionBounds) -> None:
    policy, _ = policy_of(replace(GAUSSIAN, action_bounds=bounds))
    assert make_sampler(policy, 3, 5, None).kernel() is None
