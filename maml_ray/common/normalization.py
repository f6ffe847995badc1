"""Normalization of observations: running statistics, frozen within an iteration.

A network whose inputs differ in scale by a factor of ten learns slowly (the half-cheetah's joint
velocities against its angles). The learner keeps the mean and variance of all observations that
training has seen and publishes them with each version of the parameters; within a version they
are constants, for the actors and for the meta-gradient alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 10.0
"""Normalized observations are clipped to +-10: a rare spike must not shake the network."""
_LOWER, _UPPER = np.float32(-LIMIT), np.float32(LIMIT)
_SMALLEST_STD = 1e-3


@dataclass(frozen=True, eq=False)
class Normalizer:
    """``clip((observation - mean) * scale)``: float32 constants of shape (D,)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalize observations (..., D); a new array."""
        result: NDArray[np.float32] = observations - self.mean
        result *= self.scale
        # Two ufuncs: np.clip's own overhead is as long as all the rest here.
        np.minimum(result, _UPPER, out=result)
        return np.maximum(result, _LOWER, out=result)


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """Count, mean and sum of squared deviations of everything seen; float64.

    Attributes:
        count: number of observations.
        mean: (D,).
        squares: (D,) sum of squared deviations from the mean.
    """

    count: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> RunningStatistics:
        """Nothing seen yet, of observations of ``size`` numbers."""
        return cls(0.0, np.zeros(size), np.zeros(size))

    def merged(self, observations: NDArray[np.float32]) -> RunningStatistics:
        """The statistics after ``observations`` (n, D) as well.

        Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
        """
        if len(observations) == 0:
            return self
        batch = observations.astype(np.float64)
        mean = batch.mean(axis=0)
        squares = np.square(batch - mean).sum(axis=0)
        return self + RunningStatistics(float(len(batch)), mean, squares)

    def __add__(self, other: RunningStatistics) -> RunningStatistics:
        """The statistics of what either has seen."""
        total, delta = self.count + other.count, other.mean - self.mean
        if total == 0.0:
            return self
        return RunningStatistics(
            count=total,
            mean=self.mean + delta * (other.count / total),
            squares=self.squares
            + other.squares
            + np.square(delta) * (self.count * other.count / total),
        )

    def normalizer(self) -> Normalizer:
        """The map to mean 0 and standard deviation 1; the identity while nothing has been seen."""
        if self.count == 0.0:
            return Normalizer(
                np.zeros_like(self.mean, np.float32), np.ones_like(self.mean, np.float32)
            )
        std = np.maximum(np.sqrt(self.squares / self.count), _SMALLEST_STD)
        return Normalizer(self.mean.astype(np.float32), (1.0 / std).astype(np.float32))
