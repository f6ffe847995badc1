"""Validate numbers that a person gave."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def finite_floats(parameters: Mapping[str, float]) -> dict[str, float]:
    """The parameters of a task as floats.

    Raises:
        ValueError: one of them is no number, not a number or infinite.
    """
    for name, value in parameters.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"the parameter {name} must be a finite number, got {value!r}")
    return {name: float(value) for name, value in parameters.items()}
