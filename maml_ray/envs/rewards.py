"""What a runner is asked for: a direction, or a speed.

A goal turns the velocity along x into the part of the reward that depends on the task. It takes
one number or an array of them, so the single and the batched environment share it, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Speeds = TypeVar("Speeds", np.float64, NDArray[np.float64])


class Goal(Protocol):
    """The task-dependent part of a runner's reward."""

    def reward(self, velocity: Speeds) -> Speeds:
        """Reward of one step at ``velocity`` along x, in m/s."""

    def speed(self, velocity: Speeds) -> Speeds:
        """What is reported as the speed: along x, or in the direction asked for, in m/s."""


@dataclass(frozen=True)
class Direction:
    """Run as fast as you can: ``direction * velocity``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "goal direction".

    Attributes:
        direction: 1 forward, -1 backward.
    """

    direction: float

    def reward(self, velocity: Speeds) -> Speeds:
        """The speed in the direction asked for."""
        return self.direction * velocity

    def speed(self, velocity: Speeds) -> Speeds:
        """The same."""
        return self.direction * velocity


@dataclass(frozen=True)
class TargetSpeed:
    """Run at a given speed: ``bonus - |velocity - target|``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "goal velocity".

    Attributes:
        target: m/s along x.
        bonus: added to every step: an animal that may fall must gain by staying on its feet.
    """

    target: float
    bonus: float = 0.0

    def reward(self, velocity: Speeds) -> Speeds:
        """Minus the distance to the target speed, and the bonus."""
        reward: Speeds = self.bonus - np.abs(velocity - self.target)
        return reward

    def speed(self, velocity: Speeds) -> Speeds:
        """The velocity itself."""
        return velocity
