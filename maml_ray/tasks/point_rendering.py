"""Draw a point's trail to its goal in NumPy, so that a video needs no OpenGL."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SIZE = 480
"""Width and height in pixels."""
_HALF_WIDTH = 0.75  # of the visible square, unless the point leaves it
_BACKGROUND, _AXES = (255, 255, 255), (225, 225, 225)
_TRAIL, _POINT, _GOAL = (150, 190, 230), (20, 90, 180), (220, 60, 50)


def draw_trail(trail: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw an episode's positions (n, 2) so far and its goal (2,) as (480, 480, 3) uint8."""
    half_width = max(_HALF_WIDTH, 1.1 * float(np.abs(trail).max()), 1.1 * float(np.abs(goal).max()))
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = _BACKGROUND
    image[SIZE // 2] = image[:, SIZE // 2] = _AXES
    _draw_disc(image, goal / half_width, 10.0, _GOAL)
    for start, end in pairwise(trail):
        for fraction in (0.0, 0.25, 0.5, 0.75):
            _draw_disc(image, (start + fraction * (end - start)) / half_width, 2.5, _TRAIL)
    _draw_disc(image, trail[-1] / half_width, 6.0, _POINT)
    return image


def _draw_disc(
    image: NDArray[np.uint8],
    center: NDArray[np.float64],
    radius: float,
    color: tuple[int, int, int],
) -> None:
    """Draw a disc at ``center`` (2,); the image's edges are -1 and 1, and y points up."""
    x, y = (SIZE - 1) * (1.0 + center[0]) / 2.0, (SIZE - 1) * (1.0 - center[1]) / 2.0
    left, top = max(0, int(x - radius)), max(0, int(y - radius))
    part = image[top : int(y + radius) + 2, left : int(x + radius) + 2]
    rows = np.arange(top, top + part.shape[0])[:, None] - y
    columns = np.arange(left, left + part.shape[1])[None, :] - x
    part[rows**2 + columns**2 <= radius**2] = color
