from __future__ import annotations

import numpy as np
import pytest

from maml_ray.evaluation.bootstrap import bootstrap_interval


def half_width(returns: np.ndarray, tasks: list[int]) -> float:
    low, high = bootstrap_interval(returns, tasks)
    return (high - low) / 2


def test_equal_returns_have_an_interval_of_width_zero() -> None:
    assert bootstrap_interval(np.full((3, 4), 7.5), [0, 1, 2]) == (7.5, 7.5)


def test_the_same_data_give_the_same_interval() -> None:
    returns = np.random.default_rng(0).standard_normal((6, 5))
    tasks = list(range(6))
    assert bootstrap_interval(returns, tasks) == bootstrap_interval(returns, tasks)
    assert bootstrap_interval(returns, tasks, 0.5) != bootstrap_interval(returns, tasks)


def test_its_width_is_that_of_resampling_rows_and_then_within_them() -> None:
    """Var = between rows / n + mean variance within rows / (n K), both of the data in hand."""
    rng = np.random.default_rng(1)
    returns = rng.standard_normal((8, 1)) * 3.0 + rng.standard_normal((8, 6))
    between = returns.mean(axis=1).var() / 8
    within = returns.var(axis=1).mean() / (8 * 6)
    expected = 1.96 * np.sqrt(between + within)
    assert half_width(returns, list(range(8))) == pytest.approx(expected, rel=0.05)


def test_of_a_family_with_few_tasks_only_the_adaptations_are_resampled() -> None:
    """Two directions with returns far apart: the family is known, its mean as well."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((8, 6))
    tasks = [0, 1] * 4
    returns = np.where(np.array(tasks) == 0, -100.0, 100.0)[:, None] + noise
    means = noise.mean(axis=1)
    groups = [means[0::2], means[1::2]]
    between = sum(group.var() / 4 for group in groups) / 4
    within = noise.var(axis=1).mean() / (8 * 6)
    expected = 1.96 * np.sqrt(between + within)
    assert half_width(returns, tasks) == pytest.approx(expected, rel=0.06)
    # The same numbers as draws from a family of which these are eight members.
    assert half_width(returns, list(range(8))) == pytest.approx(1.96 * 100 / np.sqrt(8), rel=0.1)


def test_one_task_adapted_to_once_is_resampled_within() -> None:
    returns = np.random.default_rng(3).standard_normal((1, 200))
    expected = 1.96 * returns.std() / np.sqrt(200)
    assert half_width(returns, [0]) == pytest.approx(expected, rel=0.05)


def test_its_coverage_is_close_to_its_confidence() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(60):
        returns = rng.standard_normal((15, 1)) + rng.standard_normal((15, 4))
        low, high = bootstrap_interval(returns, list(range(15)))
        covered += low <= 0.0 <= high
    assert 50 <= covered <= 60  # of 60; 95% are 57
