"""A picture of a point's way to its goal, in plain numpy: no OpenGL is needed for a video."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SIZE = 480
"""Pixels to each side."""
_HALF_WIDTH = 0.75  # of the plane that is shown, until the point walks further
_PAPER, _AXES = (255, 255, 255), (225, 225, 225)
_TRAIL, _POINT, _GOAL = (150, 190, 230), (20, 90, 180), (220, 60, 50)


def draw(trail: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The places (n, 2) of an episode so far and its goal (2,), as (480, 480, 3) uint8."""
    half_width = max(_HALF_WIDTH, 1.1 * float(np.abs(trail).max()), 1.1 * float(np.abs(goal).max()))
    picture = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    picture[:] = _PAPER
    picture[SIZE // 2] = picture[:, SIZE // 2] = _AXES
    _disc(picture, goal / half_width, 10.0, _GOAL)
    for start, end in pairwise(trail):
        for share in (0.0, 0.25, 0.5, 0.75):
            _disc(picture, (start + share * (end - start)) / half_width, 2.5, _TRAIL)
    _disc(picture, trail[-1] / half_width, 6.0, _POINT)
    return picture


def _disc(
    picture: NDArray[np.uint8],
    place: NDArray[np.float64],
    radius: float,
    color: tuple[int, int, int],
) -> None:
    """A disc at ``place`` (2,), where -1 and 1 are the picture's edges and y goes up."""
    x, y = (SIZE - 1) * (1.0 + place[0]) / 2.0, (SIZE - 1) * (1.0 - place[1]) / 2.0
    left, top = max(0, int(x - radius)), max(0, int(y - radius))
    part = picture[top : int(y + radius) + 2, left : int(x + radius) + 2]
    rows = np.arange(top, top + part.shape[0])[:, None] - y
    columns = np.arange(left, left + part.shape[1])[None, :] - x
    part[rows**2 + columns**2 <= radius**2] = color
