"""Compute a step of Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1).

Equal to ``torch.optim.Adam`` up to rounding. Importing that one imports PyTorch's compiler, which
adds more than a second to a learner's start.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamState(NamedTuple):
    """State of Adam.

    Attributes:
        steps: number of steps so far.
        first_moment: running mean of the gradient.
        second_moment: running mean of the squared gradient.
    """

    steps: int
    first_moment: Tensor
    second_moment: Tensor


def adam_step(
    params: Tensor, gradient: Tensor, state: AdamState, learning_rate: float
) -> tuple[Tensor, AdamState]:
    """Return the parameters after one step down ``gradient``, and the new state."""
    steps, (beta1, beta2) = state.steps + 1, BETAS
    first = state.first_moment.lerp(gradient, 1.0 - beta1)
    second = beta2 * state.second_moment + (1.0 - beta2) * gradient.square()
    scale = (second / (1.0 - beta2**steps)).sqrt() + EPSILON
    step = first / scale * (learning_rate / (1.0 - beta1**steps))
    return params - step, AdamState(steps, first, second)
