"""Multiply a few rows by a matrix within a compiled kernel.

The accumulators of a tile, four rows by sixteen outputs, stay in registers while the inputs stream
by. Compiled from plain loops they were spilled to memory at each step, which took twice as long;
the overhead of a BLAS call alone exceeds the product of one layer of a policy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from maml_ray.kernels.jit import jit

Float32 = NDArray[np.float32]

TILE_ROWS, TILE_COLUMNS = 4, 16
"""Shape of a tile. LLVM splits a row of it where a processor's registers are smaller."""


@jit
def matmul_bias(weights: Float32, inputs: Float32, outputs: Float32) -> None:
    """Compute ``outputs = inputs @ weights[1:] + weights[0]``, each row in one order of summation.

    Args:
        weights: (1 + n, m) biases, then the weights of n inputs.
        inputs: (K, n or more).
        outputs: (K, m), overwritten; K and m are multiples of the tile's shape.
    """
    for i in range(0, outputs.shape[0], TILE_ROWS):
        for o in range(0, outputs.shape[1], TILE_COLUMNS):
            _tile(weights, inputs, outputs, i, o)


_VECTOR = ir.VectorType(ir.FloatType(), TILE_COLUMNS)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
_ALL_FIRST_LANE = ir.Constant(ir.VectorType(ir.IntType(32), TILE_COLUMNS), None)


@intrinsic  # type: ignore[untyped-decorator]
def _tile(typing: Any, weights: Any, inputs: Any, outputs: Any, i: Any, o: Any) -> Any:
    """Compute the tile of ``outputs`` that starts at row ``i`` and column ``o``."""
    index = types.intp

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, inputs, outputs = (
            context.make_array(array_type)(context, builder, argument)
            for array_type, argument in zip(signature.args[:3], arguments[:3], strict=True)
        )
        i, o = arguments[3:]

        def pointer(array: Any, row: Any, column: Any) -> Any:
            offset = builder.mul(row, builder.extract_value(array.shape, 1))
            return builder.gep(array.data, [builder.add(offset, column)])

        def vector_pointer(array: Any, row: Any) -> Any:
            return builder.bitcast(pointer(array, row, o), _VECTOR.as_pointer())

        def broadcast(number: Any) -> Any:
            vector = builder.insert_element(_UNDEFINED, number, ir.IntType(32)(0))
            return builder.shuffle_vector(vector, _UNDEFINED, _ALL_FIRST_LANE)

        one, rows = i.type(1), [builder.add(i, i.type(r)) for r in range(TILE_ROWS)]
        biases = builder.load(vector_pointer(weights, i.type(0)), align=4)
        sums = [cgutils.alloca_once_value(builder, biases) for _ in rows]
        num_inputs = builder.sub(builder.extract_value(weights.shape, 0), one)
        with cgutils.for_range(builder, num_inputs) as loop:
            weight = builder.load(vector_pointer(weights, builder.add(loop.index, one)), align=4)
            for row, total in zip(rows, sums, strict=True):
                number = broadcast(builder.load(pointer(inputs, row, loop.index)))
                product = builder.fmul(number, weight, flags=("contract",))
                builder.store(
                    builder.fadd(builder.load(total), product, flags=("contract",)), total
                )
        for row, total in zip(rows, sums, strict=True):
            builder.store(builder.load(total), vector_pointer(outputs, row), align=4)
        return context.get_dummy_value()

    return types.void(weights, inputs, outputs, index, index), generate
