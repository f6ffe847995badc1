"""Compute confidence intervals of mean returns by a two-stage bootstrap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 500  # resamples drawn at a time, to bound memory


def bootstrap_interval(
    returns: NDArray[np.float64], tasks: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Return a percentile-bootstrap confidence interval (low, high) of the mean return.

    The K episodes of an adaptation share its support set and are not independent, so adaptations
    are resampled first and then episodes within each (a two-stage bootstrap, Davison and Hinkley
    1997, section 3.8). If every task was adapted to more than once, the tasks are the whole family
    (two directions, for example) and adaptations are resampled within each task. Otherwise the
    tasks are draws from a family, and adaptations to all tasks are resampled together.

    The random generator has a fixed seed: equal data give equal intervals.

    Args:
        returns: (n, K) undiscounted returns of n adaptations with K episodes each.
        tasks: (n,) task of each adaptation.
        confidence: share of the resampled means within the interval.
    """
    rng = np.random.default_rng(0)
    strata = _strata(tasks)
    count, episodes = returns.shape
    means: list[NDArray[np.float64]] = []
    for begin in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - begin)
        rows = np.concatenate(
            [stratum[rng.integers(len(stratum), size=(size, len(stratum)))] for stratum in strata],
            axis=1,
        )
        columns = rng.integers(episodes, size=(size, count, episodes))
        means.append(returns[rows[..., None], columns].mean(axis=(1, 2)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)


def _strata(tasks: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """Return row indices grouped by task if every task has several rows, else in one group."""
    groups: dict[Hashable, list[int]] = {}
    for row, task in enumerate(tasks):
        groups.setdefault(task, []).append(row)
    if min(len(group) for group in groups.values()) < 2:
        return [np.arange(len(tasks))]
    return [np.array(group) for group in groups.values()]
