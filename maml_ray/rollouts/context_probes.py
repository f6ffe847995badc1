"""Estimate the gradient of the return by a context from episodes that try other contexts.

Support episodes come in pairs, one with a number of the context raised and one with it lowered by
:data:`OFFSET`; half the difference of their returns per unit is the gradient by central differences
(Peters and Schaal 2006, https://doi.org/10.1109/IROS.2006.282564, section III-A). Compared with a
gradient from the noise of actions, an episode differs from its pair in all that it does: at another
speed, say, which tells how far the best speed is.

Axes: K episodes, C numbers of the context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.rollouts.trajectories import Trajectories

Float32 = NDArray[np.float32]

OFFSET = np.float32(2.0)
"""How far an episode's context is from that of the policy: the policy sees its tanh, 0.96."""


def context_offsets(episodes: int, size: int) -> Float32:
    """Return by how much each of K episodes moves each number of the context, (K, C).

    Episodes 0 and 1 raise and lower the first number, 2 and 3 the second, and so on, from the first
    again after the last. Of an odd number the last episode moves none.

    Raises:
        UserError: there is no pair of episodes.
    """
    if episodes < 2:
        raise UserError(
            f"{episodes} support episode is not enough to adapt a context: it takes pairs, one "
            "episode on either side, so at least 2"
        )
    offsets = np.zeros((episodes, size), np.float32)
    for pair in range(episodes // 2):
        offsets[2 * pair : 2 * pair + 2, pair % size] = OFFSET, -OFFSET
    return offsets


def context_gradient(trajectories: Trajectories) -> Float32:
    """Return the gradient (C,) of the return per step of the horizon by the context, for a unit
    offset; 0 for numbers that no episode moved.

    Raises:
        ValueError: the trajectories have no ``context_offsets``.
    """
    if trajectories.context_offsets is None:
        raise ValueError("the support episodes have no context_offsets")
    offsets = trajectories.context_offsets.astype(np.float64)
    per_step = trajectories.returns / trajectories.rewards.shape[1]
    squares = np.square(offsets).sum(axis=0)
    gradient = (per_step[:, None] * offsets).sum(axis=0) / np.where(squares > 0.0, squares, 1.0)
    rounded: Float32 = gradient.astype(np.float32)
    return rounded
