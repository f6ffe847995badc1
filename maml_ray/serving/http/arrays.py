"""Convert JSON lists to arrays, as the types of fields of request bodies."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import PlainValidator, WithJsonSchema

from maml_ray.serving.http.errors import ApiError

MAX_AXES = 3
_FLOAT32_END = 2.0**128 - 2.0**103
"""The smallest number that rounds to infinity in float32."""


def to_float32_array(value: Any) -> NDArray[np.float32]:
    """Convert nested lists of numbers to an array.

    Raises:
        ValueError: the value is something else, ragged, empty, or not finite in float32.
    """
    return to_float64_array(value).astype(np.float32)


def to_float64_array(value: Any) -> NDArray[np.float64]:
    """Convert nested lists of numbers to an array, with nothing rounded.

    Raises:
        ValueError: the value is something else, ragged, empty, or not finite in float32.
    """
    try:
        array = _to_array(value, frozenset({int, float}), "numbers", np.float64)
    except OverflowError:  # an integer beyond the range of float64
        raise ValueError("must be finite in single precision") from None
    if not np.maximum.reduce(np.abs(array), axis=None) < _FLOAT32_END:
        raise ValueError("must be finite in single precision")
    return array


def to_bool_array(value: Any) -> NDArray[np.bool_]:
    """Convert nested lists of true and false to an array.

    Raises:
        ValueError: the value is something else, ragged or empty.
    """
    return _to_array(value, frozenset({bool}), "true and false", np.bool_)


def _to_array(value: Any, types: frozenset[type], noun: str, dtype: DTypeLike) -> NDArray[Any]:
    axes, first = 0, value
    while type(first) is list and first and axes <= MAX_AXES:
        axes, first = axes + 1, first[0]
    is_empty = type(first) is list and not first and axes < MAX_AXES
    if axes > MAX_AXES or not (is_empty or (axes and _contains_only(value, axes, types))):
        raise ValueError(f"must be an array of {noun}, with at most {MAX_AXES} axes")
    try:
        array = np.array(value, dtype=dtype)
    except ValueError:
        raise ValueError("must have rows of equal length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    return array


def _contains_only(value: Any, axes: int, types: frozenset[type]) -> bool:
    """Check types row by row: 100,000 numbers take milliseconds."""
    if type(value) is not list:
        return False
    if axes == 1:
        return types.issuperset(map(type, value))
    return all(_contains_only(row, axes - 1, types) for row in value)


def wrong_shape(name: str, expected: str, array: NDArray[Any]) -> ApiError:
    """Return the error of an array whose shape does not fit."""
    return ApiError(422, f"{name} must have shape {expected}, got {array.shape}")


FloatArray = Annotated[Any, PlainValidator(to_float32_array), WithJsonSchema({"type": "array"})]
ObservationArray = Annotated[
    Any, PlainValidator(to_float64_array), WithJsonSchema({"type": "array"})
]
BoolArray = Annotated[Any, PlainValidator(to_bool_array), WithJsonSchema({"type": "array"})]
