"""Bootstrapped values after an episode that only the time limit ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maml_ray.config.sections import AdvantageSettings
from maml_ray.rollouts.advantages import (
    RIDGE,
    compute_advantages,
    compute_gae,
    fit_baseline,
    fit_bootstrapped_baseline,
)
from maml_ray.rollouts.trajectories import Trajectories
from tests.oracles import naive as oracles

Float64 = NDArray[np.float64]


def with_ends(
    seed: int, episodes: int, steps: int, *, early: bool = True, terminated: bool | None = None
) -> Trajectories:
    """Random trajectories with end information; ``terminated`` for all, or at random."""
    rng = np.random.default_rng(seed)
    data = oracles.random_trajectories(rng, episodes, steps, 2, early_ends=early)
    ended = rng.random(episodes) < 0.5 if terminated is None else np.full(episodes, terminated)
    final = rng.standard_normal((episodes, 2)).astype(np.float32)
    return replace(data, final_observations=final, terminated=ended)


def rewards_of(data: Trajectories) -> Float64:
    return np.where(data.mask, data.rewards.astype(np.float64), 0.0)


def features(observation: NDArray[np.float32]) -> list[float]:
    state = [min(max(float(s), -10.0), 10.0) for s in observation]
    return [*state, *(s * s for s in state), 1.0]


def fixed_point(data: Trajectories, discount: float) -> tuple[Float64, Float64, Float64]:
    """Fit, recompute the targets, fit again, until nothing changes: values, final ones, targets.

    Every fit is a ridge regression to rewards and what the last fit says of the final states.
    """
    assert data.final_observations is not None
    assert data.terminated is not None
    lengths = data.mask.sum(axis=1)
    final_features = np.array([features(observation) for observation in data.final_observations])
    final, values, targets = np.zeros(len(lengths)), np.zeros(0), np.zeros(0)
    for _ in range(5000):
        targets = np.zeros(data.mask.shape)
        for episode, length in enumerate(lengths):
            following = final[episode]
            for step in reversed(range(length)):
                following = float(data.rewards[episode, step]) + discount * following
                targets[episode, step] = following
        rows = np.array([features(data.observations[k, t]) for k, t in np.argwhere(data.mask)])
        system = np.vstack((rows, np.sqrt(RIDGE) * np.eye(rows.shape[1])))
        wanted = np.concatenate((targets[data.mask], np.zeros(rows.shape[1])))
        weights = np.linalg.lstsq(system, wanted, rcond=None)[0]
        values = np.zeros(data.mask.shape)
        values[data.mask] = rows @ weights
        before, final = final, (final_features @ weights) * ~data.terminated
        if np.abs(final - before).max() < 1e-13:
            return values, final, targets
    raise AssertionError("no fixed point was reached")


@pytest.mark.parametrize(
    ("seed", "episodes", "steps"), [*((i, 6, 20) for i in range(4)), (5, 2, 2)]
)
def test_the_values_are_the_fixed_point_of_fitting_and_bootstrapping(
    seed: int, episodes: int, steps: int
) -> None:
    data = with_ends(seed, episodes, steps)  # two steps: fewer samples than features
    values, final, _ = fixed_point(data, 0.7)
    found = fit_bootstrapped_baseline(data, rewards_of(data), 0.7)
    np.testing.assert_allclose(found.steps, values, atol=1e-8)
    np.testing.assert_allclose(found.final, final, atol=1e-8)
    assert (np.abs(final) > 1e-2).any()  # or the test shows nothing
    assert (final == 0).any()


@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_those_of_continuing_episodes(seed: int) -> None:
    data = with_ends(seed, 6, 20)
    settings = AdvantageSettings(
        discount=0.7, gae_lambda=0.8, bootstrap_time_limit=True, normalize=False
    )
    values, final, _ = fixed_point(data, 0.7)
    expected = np.zeros(data.mask.shape)
    for episode, length in enumerate(data.mask.sum(axis=1)):
        next_values = [*values[episode, 1:length], final[episode]]
        running = 0.0
        for step in reversed(range(length)):
            reward = float(data.rewards[episode, step])
            delta = reward + 0.7 * next_values[step] - values[episode, step]
            running = delta + 0.7 * 0.8 * running
            expected[episode, step] = running
    np.testing.assert_allclose(compute_advantages(data, settings), expected, atol=1e-5)


@given(
    seed=st.integers(0, 2**32),
    episodes=st.integers(1, 5),
    steps=st.integers(1, 12),
)
def test_if_every_episode_terminated_nothing_is_bootstrapped(
    seed: int, episodes: int, steps: int
) -> None:
    """An ordinary ridge regression to the discounted returns."""
    data = with_ends(seed, episodes, steps, terminated=True)
    rewards = rewards_of(data)
    x = np.array([features(data.observations[k, t]) for k, t in np.argwhere(data.mask)])
    y = oracles.discounted_sums(rewards, 0.9)[data.mask]
    system = np.vstack((x, np.sqrt(RIDGE) * np.eye(5)))
    weights = np.linalg.lstsq(system, np.concatenate((y, np.zeros(5))), rcond=None)[0]
    found = fit_bootstrapped_baseline(data, rewards, 0.9)
    np.testing.assert_allclose(found.steps[data.mask], x @ weights, atol=1e-4)
    np.testing.assert_array_equal(found.final, 0.0)


def test_a_constant_reward_is_worth_the_same_at_any_time() -> None:
    """``r / (1 - discount)``; with the papers' zero after the end the value falls with time."""
    data = with_ends(0, 10, 100, early=False, terminated=False)
    data = replace(data, rewards=np.full((10, 100), 2.0, np.float32))
    rewards = rewards_of(data)
    found, plain = fit_bootstrapped_baseline(data, rewards, 0.95), fit_baseline(data, rewards, 0.95)
    np.testing.assert_allclose(found.steps, 40.0, rtol=1e-3)
    np.testing.assert_allclose(found.final, 40.0, rtol=1e-3)
    assert plain.steps[:, -1].max() < 15.0
    settings = AdvantageSettings(discount=0.95, bootstrap_time_limit=True, normalize=False)
    assert np.abs(compute_advantages(data, settings)).max() < 0.1


@pytest.mark.parametrize("steps", [20, 100, 200])
@pytest.mark.parametrize("discount", [0.9, 0.99, 0.995])
def test_noise_in_the_rewards_is_not_amplified(steps: int, discount: float) -> None:
    """With the time among the features the final values were off a hundredfold."""
    for seed in range(4):
        data = with_ends(seed, 10, steps, early=False, terminated=False)
        noise = np.random.default_rng(seed).standard_normal((10, steps))
        data = replace(data, rewards=(1.0 + noise).astype(np.float32))
        found = fit_bootstrapped_baseline(data, rewards_of(data), discount)
        worth = 1.0 / (1.0 - discount)
        assert found.final.mean() == pytest.approx(worth, rel=0.3)
        assert found.steps.mean() == pytest.approx(worth, rel=0.3)


def test_the_last_step_of_each_episode_is_followed_by_its_own_final_value() -> None:
    data = with_ends(1, 5, 8)
    lengths = data.mask.sum(axis=1)
    assert len(set(lengths)) > 1
    settings = AdvantageSettings(discount=0.7, gae_lambda=0.0)
    values = fit_bootstrapped_baseline(data, rewards_of(data), 0.7)
    found = compute_gae(rewards_of(data), values, lengths, settings)
    for episode, length in enumerate(lengths):
        last = length - 1
        expected = data.rewards[episode, last] + 0.7 * values.final[episode]
        expected -= values.steps[episode, last]
        assert found[episode, last] == pytest.approx(expected)


def test_entries_after_an_end_change_nothing() -> None:
    data = with_ends(3, 4, 10)
    junk = replace(
        data,
        observations=np.where(data.mask[..., None], data.observations, np.float32(7.0)),
        rewards=np.where(data.mask, data.rewards, np.float32(1e6)),
    )
    settings = AdvantageSettings(bootstrap_time_limit=True)
    np.testing.assert_array_equal(
        compute_advantages(junk, settings), compute_advantages(data, settings)
    )


@pytest.mark.parametrize("missing", ["final_observations", "terminated"])
def test_trajectories_without_end_information_are_refused(missing: str) -> None:
    data = replace(with_ends(0, 2, 5), **{missing: None})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="final_observations and terminated"):
        compute_advantages(data, AdvantageSettings(bootstrap_time_limit=True))
