"""Products of small matrices in kernels, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from maml_ray.kernels.gemm import TILE_COLUMNS, TILE_ROWS, matmul_bias


@pytest.mark.parametrize("num_inputs", [0, 1, 5])
@pytest.mark.parametrize(("down", "across"), [(0, 1), (1, 1), (3, 2)])
def test_it_is_the_product_and_the_biases_in_one_order(
    num_inputs: int, down: int, across: int
) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1 + num_inputs, across * TILE_COLUMNS)).astype(np.float32)
    inputs = rng.standard_normal((down * TILE_ROWS, num_inputs + 3)).astype(np.float32)
    outputs = np.full((down * TILE_ROWS, across * TILE_COLUMNS), np.nan, np.float32)
    matmul_bias(weights, inputs, outputs)
    exact = weights[0] + inputs[:, :num_inputs].astype(np.float64) @ weights[1:]
    np.testing.assert_allclose(outputs, exact, rtol=1e-5, atol=1e-5)
    for row, sums in zip(inputs, outputs, strict=True):
        alone = np.zeros((TILE_ROWS, across * TILE_COLUMNS), np.float32)
        matmul_bias(weights, np.tile(row, (TILE_ROWS, 1)), alone)
        np.testing.assert_array_equal(alone, np.tile(sums, (TILE_ROWS, 1)))
