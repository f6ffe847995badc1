"""Products of small matrices in kernels, against numpy's in twice the precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maml_ray.kernels.gemm import LANES, multiply_add, padded

SHAPES = [(0, 1), (1, 1), (3, 4), (8, 1), (13, 5), (6, 9)]
"""Rows, and columns in vectors: of every kind of tile, and of none."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_it_is_the_sum_of_start_and_product(
    rows: int, vectors: int, depth: int, transposed: bool, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows + 2, depth + 3)).astype(dtype)
    if transposed:
        left = np.ascontiguousarray(left.T).T
    right = rng.standard_normal((depth, vectors * LANES)).astype(dtype)
    start = rng.standard_normal((rows, vectors * LANES)).astype(dtype)
    row = rng.standard_normal((1, vectors * LANES)).astype(dtype)
    exact = left[:rows, :depth].astype(np.longdouble) @ right.astype(np.longdouble)
    tolerance = 20 * np.finfo(dtype).eps
    out = np.full_like(start, np.nan)
    for begin in (start, row):
        multiply_add(left, right, begin, out)
        np.testing.assert_allclose(out, begin + exact, rtol=tolerance, atol=tolerance)
    expected = start + exact
    multiply_add(left, right, start, start)
    np.testing.assert_allclose(start, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_a_row_and_a_column_do_not_depend_on_those_beside_them(rows: int, vectors: int) -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows, 7)).astype(np.float32)
    right = rng.standard_normal((7, vectors * LANES)).astype(np.float32)
    every, zero = np.empty((rows, vectors * LANES), np.float32), np.zeros((1, LANES), np.float32)
    multiply_add(left, right, np.zeros((1, vectors * LANES), np.float32), every)
    alone = np.empty((1, LANES), np.float32)
    for row in range(rows):
        for vector in range(vectors):
            columns = slice(vector * LANES, (vector + 1) * LANES)
            multiply_add(left[row : row + 1], right[:, columns].copy(), zero, alone)
            np.testing.assert_array_equal(alone[0], every[row, columns])


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_columns_are_rounded_up(count: int, expected: int) -> None:
    assert padded(count) == expected
