"""Draw training tasks and held-out tasks that are disjoint by construction.

An interval is cut into ten blocks of five cells. The middle cell of each block is held out:
training never draws from it, evaluation draws from nothing else. Both draw every block equally
often and symmetrically about its middle, so that their means are equal and their quantiles differ
by at most a twenty-fifth of the interval. Training reaches both ends. A held-out task is at most a
hundredth of the interval away from one that training draws, and never the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_BLOCKS, _CELLS_PER_BLOCK, _HELD_OUT = 10, 5, 2
T = TypeVar("T")


def uniform_training(
    rng: np.random.Generator, low: float, high: float, count: int
) -> NDArray[np.float64]:
    """Draw ``count`` numbers, uniform on the four fifths of [low, high) for training."""
    cells = (_CELLS_PER_BLOCK - 1) * rng.random(count)
    return _in_blocks(rng, low, high, cells + (cells >= _HELD_OUT))


def uniform_held_out(
    rng: np.random.Generator, low: float, high: float, count: int
) -> NDArray[np.float64]:
    """Draw ``count`` numbers, uniform on the fifth of [low, high) that is held out."""
    return _in_blocks(rng, low, high, _HELD_OUT + rng.random(count))


def balanced_choice(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """Draw ``count`` of ``values`` in random order, each equally often up to one.

    Expectations equal those of independent draws; the meta-gradient's variance is smaller.
    """
    picks = np.concatenate([rng.permutation(len(values)) for _ in range(-(-count // len(values)))])[
        :count
    ]
    return [values[i] for i in rng.permutation(picks)]


def _in_blocks(
    rng: np.random.Generator, low: float, high: float, cells: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return numbers of [low, high) at ``cells``, in [0, 5), of random blocks."""
    blocks = rng.integers(_BLOCKS, size=len(cells)) + cells / _CELLS_PER_BLOCK
    result: NDArray[np.float64] = low + (high - low) * blocks / _BLOCKS
    return result
