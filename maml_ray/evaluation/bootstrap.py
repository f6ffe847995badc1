"""Intervals of a mean return, by bootstrap, with what depends on what kept in mind."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 500  # resamples drawn at a time: memory, not mathematics


def bootstrap_interval(
    returns: NDArray[np.float64], tasks: Sequence[Hashable], share: float = 0.95
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean of ``returns`` (n, K), the same at every call.

    The n rows are adaptations, each to one of ``tasks`` (n,) with support data of its own; the K
    episodes of a row share what they adapted to, and are not independent. So adaptations are
    resampled first, and episodes within each (a two-stage bootstrap, Davison and Hinkley 1997,
    section 3.8). Where every task was adapted to more than once, the tasks are the family's (two
    directions), and only the adaptations to each are resampled; where they are draws from a
    family, so are they.

    Args:
        returns: of the episodes.
        tasks: equal for equal tasks.
        share: of the resampled means that lies inside.
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
        picks = rng.integers(episodes, size=(size, count, episodes))
        means.append(returns[rows[..., None], picks].mean(axis=(1, 2)))
    tail = 50.0 * (1.0 - share)
    low, high = np.percentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)


def _strata(tasks: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """Row numbers by task where each task has several, else all in one."""
    groups: dict[Hashable, list[int]] = {}
    for row, task in enumerate(tasks):
        groups.setdefault(task, []).append(row)
    if min(len(group) for group in groups.values()) < 2:
        return [np.arange(len(tasks))]
    return [np.array(group) for group in groups.values()]
