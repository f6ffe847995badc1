"""Arrays parsed from JSON equal NumPy's, and anything but numbers or booleans is rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from maml_ray.serving.http.arrays import to_bool_array, to_float32_array

FINITE = {"allow_nan": False, "allow_infinity": False}


@given(arrays(np.float32, array_shapes(max_dims=3), elements=FINITE))
def test_float32_arrays_come_back_to_the_bit(array: Any) -> None:
    sent = orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))
    back = to_float32_array(sent)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "array of numbers"),
        (1.0, "array of numbers"),
        ("12", "array of numbers"),
        ({"0": 1}, "array of numbers"),
        (["1", "2"], "array of numbers"),
        ([1.0, True], "array of numbers"),
        ([True, 1.0], "array of numbers"),
        ([1.0, None], "array of numbers"),
        ([[1.0], 2.0], "array of numbers"),
        ([1.0, [2.0]], "array of numbers"),
        ([[1.0, 2.0], [3.0, "4"]], "array of numbers"),
        ([[[[1.0]]]], "3 axes"),
        ([[1.0, 2.0], [3.0]], "equal length"),
        ([[[1.0]], [[1.0, 2.0]]], "equal length"),
        ([], "empty"),
        ([[]], "empty"),
        ([1e39], "finite"),
        ([10**400], "finite"),
        ([float("nan")], "finite"),
        ([float("-inf")], "finite"),
    ],
)
def test_other_values_are_rejected(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_float32_array(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_an_array_or_rejected(value: Any) -> None:
    """Compare with checking every leaf by itself."""

    def leaves(part: Any) -> list[Any]:
        return [leaf for one in part for leaf in leaves(one)] if type(part) is list else [part]

    for read, kinds in ((to_float32_array, (int, float)), (to_bool_array, (bool,))):
        try:
            array = read(value)
        except ValueError:
            continue
        assert all(type(leaf) in kinds for leaf in leaves(value))
        np.testing.assert_array_equal(array.ravel(), np.array(leaves(value), dtype=array.dtype))


def test_booleans_are_not_numbers_and_vice_versa() -> None:
    np.testing.assert_array_equal(to_bool_array([[True, False]]), [[True, False]])
    for value in ([1, 0], [True, 1], ["true"], [[True], [True, False]], []):
        with pytest.raises(ValueError, match="must"):
            to_bool_array(value)
