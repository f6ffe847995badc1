"""Draw training tasks and held-out tasks that are disjoint by construction.

An interval is cut into fifty cells, every fifth of which is held out: training never draws from
it, evaluation draws from nothing else. A held-out task is at most a fiftieth of the interval away
from one that training draws, and never the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_BLOCKS, _CELLS_PER_BLOCK = 10, 5
T = TypeVar("T")


def uniform_training(
    rng: np.random.Generator, low: float, high: float, count: int
) -> NDArray[np.float64]:
    """Draw ``count`` numbers, uniform on the four fifths of [low, high) for training."""
    return _uniform_in_cells(rng, low, high, count, first=0, cells=_CELLS_PER_BLOCK - 1)


def uniform_held_out(
    rng: np.random.Generator, low: float, high: float, count: int
) -> NDArray[np.float64]:
    """Draw ``count`` numbers, uniform on the fifth of [low, high) that is held out."""
    return _uniform_in_cells(rng, low, high, count, first=_CELLS_PER_BLOCK - 1, cells=1)


def balanced_choice(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """Draw ``count`` of ``values`` in random order, each equally often up to one.

    Expectations equal those of independent draws; the meta-gradient's variance is smaller.
    """
    picks = np.concatenate([rng.permutation(len(values)) for _ in range(-(-count // len(values)))])[
        :count
    ]
    return [values[i] for i in rng.permutation(picks)]


def _uniform_in_cells(
    rng: np.random.Generator, low: float, high: float, count: int, *, first: int, cells: int
) -> NDArray[np.float64]:
    block = rng.integers(_BLOCKS, size=count)
    within = (first + cells * rng.random(count)) / _CELLS_PER_BLOCK
    result: NDArray[np.float64] = low + (high - low) * (block + within) / _BLOCKS
    return result
