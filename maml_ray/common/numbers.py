"""Validate numbers from the user."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def finite_floats(parameters: Mapping[str, float]) -> dict[str, float]:
    """Return the parameters of a task as floats.

    Raises:
        ValueError: one of them is not a number, or is NaN or infinite.
    """
    for name, value in parameters.items():
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ValueError(f"the parameter {name} must be a finite number, got {value!r}")
    return {name: float(value) for name, value in parameters.items()}
