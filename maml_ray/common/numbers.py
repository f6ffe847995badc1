"""Validate numbers from the user."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np

from maml_ray.common.errors import UserError

MAX_MAGNITUDE = 1e30
"""Of a task's parameter: what larger numbers mean is no task, and plots cannot show them."""


def plain_scalar(value: Any) -> bool | int | float | str:
    """Return a number or text as Python's own type, which JSON keeps.

    NumPy's scalars, and arrays and tensors without axes, are converted.

    Raises:
        ValueError: it is something else, is NaN or infinite, or cannot be written as UTF-8.
    """
    original = value
    if not isinstance(value, str) and getattr(value, "shape", None) == ():
        value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value):
            return str.__str__(value)
    elif isinstance(value, bool | np.bool_):
        return bool(value)
    elif isinstance(value, Real):
        with suppress(OverflowError):  # of a fraction
            number = int(value) if isinstance(value, Integral) else float(value)
            if abs(number) <= MAX_MAGNITUDE:  # of NaN False
                return number
    raise ValueError(
        f"must be a number (finite, at most {MAX_MAGNITUDE:g}) or text, got {original!r:.60}"
    )


def finite_floats(parameters: Mapping[str, Any]) -> dict[str, float]:
    """Return the parameters of a task as floats.

    Raises:
        ValueError: one of them is not a number, or is NaN or infinite.
    """
    numbers = {}
    for name, value in parameters.items():
        try:
            number = plain_scalar(value)
        except ValueError:
            number = ""
        if isinstance(number, bool | str):
            raise ValueError(f"the parameter {name} must be a finite number, got {value!r:.60}")
        numbers[name] = float(number)
    return numbers


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
