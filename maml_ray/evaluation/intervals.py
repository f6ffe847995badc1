"""Compute confidence intervals of mean returns, and write them as text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Lower and upper end."""


def mean_interval(
    values: NDArray[np.float64],
    tasks: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """Return Student's t interval of the mean of independent values.

    A value is the mean return of one adaptation, or of one seed. The episodes of an adaptation
    share its support set and are not independent, so that only their mean counts; how they vary
    shows in how the means vary.

    If every task has several values, the tasks are the whole family (two directions, for example).
    Then the variance is that within the tasks, with Welch's approximate degrees of freedom (Welch
    1947, The generalization of "Student's" problem when several different population variances are
    involved, Biometrika 34). Otherwise the tasks are draws from a family, and all values are one
    sample.

    Args:
        values: (n,) independent values.
        tasks: (n,) task of each value; None if they are one sample.
        confidence: probability with which the interval covers the mean of normal values.

    Returns:
        Lower and upper end; None if there is one value.
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # slow to import

    groups = _groups(len(values), tasks)
    sizes = np.array([len(group) for group in groups])
    variances = np.array([values[group].var(ddof=1) for group in groups])
    parts = sizes * variances / len(values) ** 2  # of the mean's variance, one for each group
    mean, variance = float(values.mean()), float(parts.sum())
    if variance == 0.0:
        return mean, mean
    freedom = 1.0 / float((np.square(parts / variance) / (sizes - 1)).sum())
    half_width = float(stdtrit(freedom, (1.0 + confidence) / 2.0)) * variance**0.5
    return mean - half_width, mean + half_width


def format_interval(low: float | None, high: float | None) -> str:
    """Return the interval of an evaluation as text, or why there is none."""
    return "one adaptation" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _groups(count: int, tasks: Sequence[Hashable] | None) -> list[NDArray[np.int64]]:
    """Return the indices by task if every task has several values, else in one group."""
    by_task: dict[Hashable, list[int]] = {}
    for index, task in enumerate(tasks or [None] * count):
        by_task.setdefault(task, []).append(index)
    if min(map(len, by_task.values())) < 2:
        return [np.arange(count)]
    return [np.array(group) for group in by_task.values()]
