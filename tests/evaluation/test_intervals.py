from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import ArrayLike

from maml_ray.evaluation.intervals import format_interval, mean_interval

EXPERIMENTS = 2000
"""Simulated for each case: the standard error of the coverage is half a percent."""


def interval(values: ArrayLike, *arguments: Any) -> tuple[float, float]:
    found = mean_interval(np.asarray(values, dtype=np.float64), *arguments)
    assert found is not None
    return found


def test_one_sample_has_the_t_interval_of_scipy() -> None:
    values = np.random.default_rng(0).standard_normal(7)
    for confidence in (0.5, 0.95):
        expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
        for tasks in (None, list(range(7)), ["one task"] * 7, [1, 1, 2, 2, 3, 3, 4]):
            assert interval(values, tasks, confidence) == pytest.approx(tuple(expected))


def test_two_tasks_have_the_interval_of_welch() -> None:
    """The mean of two equally large groups is half the sum: half of a Welch test's difference."""
    rng = np.random.default_rng(1)
    forward, backward = 100.0 + rng.standard_normal(5), -100.0 + 3.0 * rng.standard_normal(5)
    expected = scipy.stats.ttest_ind(forward, -backward, equal_var=False).confidence_interval(0.95)
    low, high = interval([*forward, *backward], [1] * 5 + [-1] * 5)
    assert (low, high) == pytest.approx((expected.low / 2, expected.high / 2))
    # The same returns as those of ten draws from a family.
    low, high = interval([*forward, *backward], list(range(10)))
    assert high - low > 100.0


def test_equal_returns_have_an_interval_of_width_zero() -> None:
    assert interval([7.5, 7.5, 7.5]) == (7.5, 7.5)
    assert interval([7.5, 7.5, 7.5, 7.5], [0, 0, 1, 1]) == (7.5, 7.5)


def test_one_value_has_no_interval_and_says_so() -> None:
    assert mean_interval(np.array([3.0])) is None
    assert mean_interval(np.array([3.0]), ["forward"]) is None
    assert format_interval(None, None) == "one adaptation"
    assert format_interval(-1.04, 2.0) == "-1.0 to 2.0"


def test_a_simulation_that_diverged_has_an_interval_that_is_no_number() -> None:
    assert np.isnan(interval([1.0, np.nan, 2.0])).all()


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standardized returns of episodes: normal."""
    return rng.standard_normal(shape)


def ended(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return those of episodes that may end after each step: skewed."""
    return np.asarray((rng.geometric(0.02, shape) - 50.0) / np.sqrt(0.98) * 0.02)


def falls(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return those of episodes a fifth of which goes wrong: two clusters."""
    return np.where(rng.random(shape) < 0.2, -2.0, 0.5)


@pytest.mark.parametrize(
    ("draw", "support"),
    [(normal, 0.5), (ended, 0.0), (falls, 0.0)],
    ids=["normal", "ended", "fall"],
)
@pytest.mark.parametrize(
    ("adaptations", "episodes"),
    [
        *[([1] * 5, 10), ([1] * 10, 20), ([1] * 40, 20)],
        *[([3, 2], 10), ([5, 5], 10), ([20, 20], 20), ([7, 3], 10), ([2, 3, 5], 10)],
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_an_interval_of_95_percent_covers_the_mean_in_95_percent(
    draw: Any, support: float, adaptations: list[int], episodes: int
) -> None:
    """Whatever the shape of the evaluation and the distribution of returns.

    Args:
        draw: returns of episodes.
        support: standard deviation of the support sets' effect; that of episodes is 1.
        adaptations: to each task; one to each is a family that the tasks are drawn from.
        episodes: of each adaptation.
    """
    rng = np.random.default_rng([len(adaptations), episodes])
    tasks = np.repeat(np.arange(len(adaptations)), adaptations)
    shape = (EXPERIMENTS, len(tasks), episodes)
    means = draw(rng, shape).mean(axis=2) + support * rng.standard_normal(shape[:2])
    if max(adaptations) > 1:
        means *= 1.0 + tasks  # one task's returns vary more than another's
        means += 50.0 * tasks  # and lie far away
    truth = 50.0 * tasks.mean() if max(adaptations) > 1 else 0.0
    ends = np.array([interval(each, tasks.tolist()) for each in means])
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert 0.93 <= covered <= 0.97


def test_the_gain_of_a_step_is_paired() -> None:
    """Returns before and after share the task; the difference does not vary with it."""
    rng = np.random.default_rng(2)
    before = 100.0 * rng.standard_normal(8)
    after = before + 5.0 + rng.standard_normal(8)
    low, high = interval(after - before)
    assert 0.0 < low < 5.0 < high < 10.0
    low, high = scipy.stats.ttest_rel(after, before).confidence_interval(0.95)
    assert interval(after - before) == pytest.approx((low, high))
