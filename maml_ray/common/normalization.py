"""Normalize observations by running statistics that are constant within an iteration.

A network whose inputs differ in scale by a factor of ten learns slowly (the half-cheetah's joint
velocities against its angles). The learner keeps the mean and variance of all observations that
training has seen and publishes them with each version of the parameters; within a version they
are constant, for the actors and the meta-gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 10.0
"""Normalized observations are clipped to +-10, so that rare outliers do no harm."""
_LOWER, _UPPER = np.float32(-LIMIT), np.float32(LIMIT)
_MIN_STD = 1e-3
_MAX_ROUNDING = 0.01
"""Of a mean in float32, relative to the standard deviation. Where it is larger, as for metres from
the equator or seconds since 1970, observations are centered in float64."""


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Compute ``clip((observation - mean) * scale)`` with constants of shape (D,).

    Attributes:
        mean: of the type in which observations are centered: float32, or float64 if float32 would
            lose how they vary.
        scale: float32.
    """

    mean: NDArray[np.floating]
    scale: NDArray[np.float32]

    @property
    def needs_float64(self) -> bool:
        """Whether observations must not be rounded to float32 before they are centered."""
        return bool(self.mean.dtype == np.float64)

    def __call__(self, observations: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return normalized observations (..., D) as a new array."""
        centered = observations.astype(self.mean.dtype, copy=False) - self.mean
        result: NDArray[np.float32] = centered.astype(np.float32, copy=False)
        result *= self.scale
        # Not np.clip: its overhead is as long as all the rest here.
        np.minimum(result, _UPPER, out=result)
        return np.maximum(result, _LOWER, out=result)


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """Count, mean and sum of squared deviations of observations, in float64.

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
        """Return the statistics of no observations, each of ``size`` numbers."""
        return cls(0.0, np.zeros(size), np.zeros(size))

    def merged(self, observations: NDArray[np.floating]) -> RunningStatistics:
        """Return the statistics with ``observations`` (n, D) added.

        Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
        """
        if len(observations) == 0:
            return self
        batch = observations.astype(np.float64)
        mean = batch.mean(axis=0)
        squares = np.square(batch - mean).sum(axis=0)
        return self + RunningStatistics(float(len(batch)), mean, squares)

    def __add__(self, other: RunningStatistics) -> RunningStatistics:
        """Return the statistics of the observations of both."""
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
        """Return the map to mean 0 and standard deviation 1; the identity without observations."""
        if self.count == 0.0:
            return Normalizer(
                np.zeros_like(self.mean, np.float32), np.ones_like(self.mean, np.float32)
            )
        std = np.maximum(np.sqrt(self.squares / self.count), _MIN_STD)
        rounding = np.abs(self.mean) * np.finfo(np.float32).eps / 2
        mean_type = np.float64 if (rounding > _MAX_ROUNDING * std).any() else np.float32
        return Normalizer(self.mean.astype(mean_type), (1.0 / std).astype(np.float32))


def normalize(
    observations: NDArray[np.floating], normalizer: Normalizer | None
) -> NDArray[np.float32]:
    """Return observations (..., D) as a policy's network takes them."""
    if normalizer is not None:
        return normalizer(observations)
    return observations.astype(np.float32, copy=False)


def as_float32(
    observations: NDArray[np.floating], normalizer: Normalizer | None
) -> NDArray[np.floating]:
    """Round observations (n, D) to float32, unless it would lose how they vary.

    Args:
        observations: float32 or float64.
        normalizer: what is to normalize them; None rounds always.
    """
    if observations.dtype == np.float64 and normalizer is not None:
        seen = RunningStatistics.empty(observations.shape[1]).merged(observations)
        if normalizer.needs_float64 or seen.normalizer().needs_float64:
            return observations
    return observations.astype(np.float32, copy=False)
