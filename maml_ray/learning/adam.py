"""Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1) as a pure function.

PyTorch's own, to rounding; with it PyTorch imports its compiler, for more than a second of a
learner's start.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Moments(NamedTuple):
    """What Adam remembers.

    Attributes:
        steps: taken so far.
        first: running mean of the gradient.
        second: running mean of its square.
    """

    steps: int
    first: Tensor
    second: Tensor


def adam_step(
    theta: Tensor, gradient: Tensor, moments: Moments, rate: float
) -> tuple[Tensor, Moments]:
    """Parameters after one step down ``gradient``, and the moments then; all of one shape."""
    steps, (one, two) = moments.steps + 1, BETAS
    first = moments.first.lerp(gradient, 1.0 - one)
    second = two * moments.second + (1.0 - two) * gradient.square()
    deviation = (second / (1.0 - two**steps)).sqrt() + EPSILON
    step = first / deviation * (rate / (1.0 - one**steps))
    return theta - step, Moments(steps, first, second)
