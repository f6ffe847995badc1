"""Validate numbers from the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from maml_ray.common.errors import UserError


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


def check_whole_number(name: str, value: Any, *, least: int) -> None:
    """Reject anything but a whole number of ``least`` or more.

    Raises:
        UserError: the sentence names the argument ``name``.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise UserError(
            f"{name} = {value!r:.80} is not allowed: write a whole number of {least} or more"
        )
