from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.config.sections import AdvantageSettings
from maml_ray.rollouts.advantages import (
    RIDGE,
    BaselineValues,
    baseline_features,
    compute_advantages,
    compute_gae,
    discounted_sums,
    fit_baseline,
)
from maml_ray.rollouts.trajectories import Trajectories
from tests.oracles import naive as oracles

trajectories = st.builds(
    lambda seed, episodes, steps, early: oracles.random_trajectories(
        np.random.default_rng(seed), episodes, steps, early_ends=early
    ),
    seed=st.integers(0, 2**32),
    episodes=st.integers(1, 4),
    steps=st.integers(1, 12),
    early=st.booleans(),
)
fractions = st.sampled_from([0.0, 0.3, 0.95, 0.99, 1.0])


def raw(**changes: object) -> AdvantageSettings:
    return AdvantageSettings(normalize=False).model_copy(update=changes)


@given(data=trajectories, discount=fractions)
def test_discounted_sums_are_the_definition(data: Trajectories, discount: float) -> None:
    rewards = data.rewards.astype(np.float64)
    np.testing.assert_allclose(
        discounted_sums(rewards, discount), oracles.discounted_sums(rewards, discount), atol=1e-12
    )


def test_discounted_sums_by_hand() -> None:
    sums = discounted_sums(np.array([[1.0, 2.0, 4.0]]), 0.5)
    np.testing.assert_array_equal(sums, [[3.0, 4.0, 4.0]])


@pytest.mark.parametrize("steps", [256, 257, 700])
def test_discounted_sums_of_several_blocks_are_the_recursion(steps: int) -> None:
    values = np.random.default_rng(0).standard_normal((3, steps))
    expected, following = np.zeros_like(values), np.zeros(3)
    for t in reversed(range(steps)):
        following = expected[:, t] = values[:, t] + 0.99 * following
    np.testing.assert_allclose(discounted_sums(values, 0.99), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_memory_of_advantages_is_linear_in_the_steps(bootstrap: bool) -> None:
    data = oracles.random_trajectories(np.random.default_rng(0), 2, 20_000)
    data = replace(
        data, final_observations=data.observations[:, -1], terminated=np.zeros(2, np.bool_)
    )
    tracemalloc.start()
    try:
        compute_advantages(data, raw(bootstrap_time_limit=bootstrap))
        assert tracemalloc.get_traced_memory()[1] < 100e6  # a T x T matrix: 3.2 GB
    finally:
        tracemalloc.stop()


@given(data=trajectories, discount=fractions, lam=fractions)
def test_gae_is_the_sum_over_temporal_differences(
    data: Trajectories, discount: float, lam: float
) -> None:
    rewards = data.rewards.astype(np.float64)
    values = np.where(data.mask, data.observations[..., 0].astype(np.float64), 0.0)
    settings, lengths = AdvantageSettings(discount=discount, gae_lambda=lam), data.mask.sum(axis=1)
    final = np.zeros(data.episodes)
    actual = compute_gae(rewards, BaselineValues(values, final), lengths, settings)
    expected = oracles.gae(rewards, values, lengths, discount, lam)
    np.testing.assert_allclose(np.where(data.mask, actual, 0.0), expected, atol=1e-12)


def test_features_by_hand() -> None:
    observations = np.array([[[2.0], [-30.0]]], dtype=np.float32)
    expected = np.array([[[2, 4, 0, 0, 0, 1], [-10, 100, 0.01, 0.0001, 0.000001, 1]]])
    np.testing.assert_allclose(baseline_features(observations, np.arange(2)), expected)
    later = np.array([[[2, 4, 1.5, 2.25, 3.375, 1], [-10, 100, 1.5, 2.25, 3.375, 1]]])
    np.testing.assert_allclose(baseline_features(observations, np.array([150])), later)


@given(data=trajectories)
def test_baseline_is_the_ridge_solution(data: Trajectories) -> None:
    rewards = data.rewards.astype(np.float64)
    returns = oracles.discounted_sums(rewards, 0.99)
    values = fit_baseline(data, rewards, 0.99)
    expected = oracles.ridge_values(data, returns, RIDGE)
    np.testing.assert_allclose(values.steps, expected, atol=1e-4)
    np.testing.assert_array_equal(values.final, 0.0)


@given(data=trajectories, discount=fractions, lam=fractions, normalize=st.booleans())
def test_advantages_equal_the_oracles_combined(
    data: Trajectories, discount: float, lam: float, normalize: bool
) -> None:
    settings = AdvantageSettings(discount=discount, gae_lambda=lam, normalize=normalize)
    rewards = data.rewards.astype(np.float64)
    returns = oracles.discounted_sums(rewards, discount)
    values = oracles.ridge_values(data, returns, RIDGE)
    expected = oracles.gae(rewards, values, data.mask.sum(axis=1), discount, lam)
    unmasked = expected[data.mask]
    tolerance = 1e-3
    if normalize:
        if unmasked.std() < 0.1:  # the baseline explains everything but rounding
            return
        expected = np.where(data.mask, (expected - unmasked.mean()) / unmasked.std(), 0.0)
        tolerance = 1e-2
    actual = compute_advantages(data, settings)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=tolerance)


@given(data=trajectories, discount=fractions)
def test_zero_baseline_with_lambda_one_gives_the_discounted_returns(
    data: Trajectories, discount: float
) -> None:
    settings = raw(baseline="zero", gae_lambda=1.0, discount=discount)
    expected = oracles.discounted_sums(data.rewards.astype(np.float64), discount)
    actual = compute_advantages(data, settings)
    np.testing.assert_allclose(actual, np.where(data.mask, expected, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("early", [False, True])
def test_normalized_advantages_have_mean_zero_and_deviation_one(early: bool) -> None:
    data = oracles.random_trajectories(np.random.default_rng(0), 6, 30, early_ends=early)
    result = compute_advantages(data, AdvantageSettings())
    assert result[data.mask].mean() == pytest.approx(0.0, abs=1e-6)
    assert result[data.mask].std() == pytest.approx(1.0, abs=1e-5)
    assert (result[~data.mask] == 0).all()


def test_the_scale_of_the_reward_does_not_matter_when_normalized() -> None:
    data = oracles.random_trajectories(np.random.default_rng(0), 4, 30)
    scaled = replace(data, rewards=data.rewards * np.float32(64.0))
    np.testing.assert_allclose(
        compute_advantages(scaled, AdvantageSettings()),
        compute_advantages(data, AdvantageSettings()),
        atol=1e-4,
    )


def test_entries_after_an_end_change_nothing() -> None:
    data = oracles.random_trajectories(np.random.default_rng(3), 4, 10, early_ends=True)
    assert not data.mask.all()
    junk = replace(
        data,
        observations=np.where(data.mask[..., None], data.observations, np.float32(7.0)),
        rewards=np.where(data.mask, data.rewards, np.float32(1e6)),
    )
    np.testing.assert_array_equal(
        compute_advantages(junk, AdvantageSettings()), compute_advantages(data, AdvantageSettings())
    )


def test_constant_rewards_of_zero_give_zero() -> None:
    data = oracles.random_trajectories(np.random.default_rng(0))
    silent = replace(data, rewards=np.zeros_like(data.rewards))
    np.testing.assert_array_equal(compute_advantages(silent, AdvantageSettings()), 0.0)


def test_a_good_baseline_removes_what_the_state_explains() -> None:
    data = oracles.random_trajectories(np.random.default_rng(0), 20, 5)
    explained = replace(data, rewards=data.observations[..., 0].copy())
    settings = raw(discount=0.0)
    assert float(np.abs(compute_advantages(explained, settings)).max()) < 1e-3
