"""Numbers out of JSON, as float32 arrays: no strings, no booleans, nothing that is not finite.

A list is looked at row by row and not number by number: a body of a hundred thousand numbers is
checked in milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator, WithJsonSchema

MOST_AXES = 3
_NUMBERS = frozenset({int, float})
_BOOLEANS = frozenset({bool})


def float32_array(value: Any) -> NDArray[np.float32]:
    """Nested lists of numbers as an array.

    Raises:
        ValueError: it is something else, of uneven rows, empty, or not finite in float32.
    """
    _check(value, _NUMBERS, "numbers")
    try:
        with np.errstate(over="ignore"):  # what is too large is found below
            array = np.array(value, dtype=np.float32)
    except OverflowError:  # a whole number beyond any float
        raise ValueError("must be finite numbers of single precision") from None
    except ValueError:
        raise ValueError("must have rows of one length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    if not np.isfinite(array).all():
        raise ValueError("must be finite numbers of single precision")
    return array


def bool_array(value: Any) -> NDArray[np.bool_]:
    """Nested lists of true and false as an array.

    Raises:
        ValueError: it is something else, of uneven rows, or empty.
    """
    _check(value, _BOOLEANS, "true and false")
    try:
        array = np.array(value, dtype=np.bool_)
    except ValueError:
        raise ValueError("must have rows of one length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    return array


Numbers = Annotated[Any, PlainValidator(float32_array), WithJsonSchema({"type": "array"})]
"""A field of a request that is an array of numbers."""
Booleans = Annotated[Any, PlainValidator(bool_array), WithJsonSchema({"type": "array"})]
"""A field of a request that is an array of true and false."""


def _check(value: Any, kinds: frozenset[type], words: str) -> None:
    axes, first = 0, value
    while type(first) is list and first and axes <= MOST_AXES:
        axes, first = axes + 1, first[0]
    empty = type(first) is list and not first and axes < MOST_AXES
    if axes > MOST_AXES or not (empty or (axes and _made_of(value, axes, kinds))):
        raise ValueError(f"must be an array of {words}, of at most {MOST_AXES} axes")


def _made_of(value: Any, axes: int, kinds: frozenset[type]) -> bool:
    if type(value) is not list:
        return False
    if axes == 1:
        return kinds.issuperset(map(type, value))
    return all(_made_of(row, axes - 1, kinds) for row in value)
