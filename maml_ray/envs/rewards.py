"""Reward running in a direction or at a target speed.

A goal maps the velocity along x to the task-dependent part of the reward. It takes a number or an
array, so that single and batched environments compute the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Velocity = TypeVar("Velocity", np.float64, NDArray[np.float64])


class Goal(Protocol):
    """The task-dependent part of a locomotion reward."""

    def reward(self, velocity: Velocity) -> Velocity:
        """Return the reward of a step at ``velocity`` along x, in m/s."""

    def speed(self, velocity: Velocity) -> Velocity:
        """Return the speed to report: along x or in the goal's direction, in m/s."""


@dataclass(frozen=True)
class Direction:
    """Run as fast as possible in a direction: ``direction * velocity``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "goal direction".

    Attributes:
        direction: 1 forward, -1 backward.
    """

    direction: float

    def reward(self, velocity: Velocity) -> Velocity:
        """Return the speed in the goal's direction."""
        return self.direction * velocity

    def speed(self, velocity: Velocity) -> Velocity:
        """Return the speed in the goal's direction."""
        return self.direction * velocity


@dataclass(frozen=True)
class TargetSpeed:
    """Run at a target speed: ``bonus - |velocity - target|``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "goal velocity".

    Attributes:
        target: m/s along x.
        bonus: added in each step: an animal that can fall must gain by staying upright.
    """

    target: float
    bonus: float = 0.0

    def reward(self, velocity: Velocity) -> Velocity:
        """Return the bonus minus the distance to the target speed."""
        reward: Velocity = self.bonus - np.abs(velocity - self.target)
        return reward

    def speed(self, velocity: Velocity) -> Velocity:
        """Return the velocity along x."""
        return velocity
