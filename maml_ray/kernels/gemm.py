"""The product of a few rows with a matrix, for compiled loops.

The sums of a tile, four rows by sixteen outputs, stay in a processor's registers while the inputs
go by. Compiled from plain loops they were written to memory and read again all the time, which
took twice as long; a library's call alone takes longer than the product of a policy's layer.
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
"""A tile's. On a processor of smaller registers the compiler makes it of several of them."""


@jit
def matmul_bias(values: Float32, seen: Float32, into: Float32) -> None:
    """Biases plus weighted inputs; each row alone, its sums in the order of the inputs.

    Args:
        values: (1 + n, m) biases, and the weights of n inputs.
        seen: (K, n or more) inputs.
        into: (K, m) sums, to be filled in; K and m are multiples of a tile's.
    """
    for i in range(0, into.shape[0], TILE_ROWS):
        for o in range(0, into.shape[1], TILE_COLUMNS):
            _tile(values, seen, into, i, o)


_VECTOR = ir.VectorType(ir.FloatType(), TILE_COLUMNS)
_NO_VECTOR = ir.Constant(_VECTOR, ir.Undefined)
_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), TILE_COLUMNS), None)


@intrinsic  # type: ignore[untyped-decorator]
def _tile(typing: Any, values: Any, seen: Any, into: Any, i: Any, o: Any) -> Any:
    """The rows of ``into`` from ``i`` on, and the outputs from ``o`` on."""
    index = types.intp

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[:3]
        values, seen, into = (
            context.make_array(kind)(context, builder, each)
            for kind, each in zip(kinds, arguments[:3], strict=True)
        )
        i, o = arguments[3:]

        def place(array: Any, row: Any, column: Any) -> Any:
            begin = builder.mul(row, builder.extract_value(array.shape, 1))
            return builder.gep(array.data, [builder.add(begin, column)])

        def lanes(array: Any, row: Any) -> Any:
            return builder.bitcast(place(array, row, o), _VECTOR.as_pointer())

        def spread(number: Any) -> Any:
            alone = builder.insert_element(_NO_VECTOR, number, ir.IntType(32)(0))
            return builder.shuffle_vector(alone, _NO_VECTOR, _FIRST)

        one, rows = i.type(1), [builder.add(i, i.type(r)) for r in range(TILE_ROWS)]
        biases = builder.load(lanes(values, i.type(0)), align=4)
        sums = [cgutils.alloca_once_value(builder, biases) for _ in rows]
        inputs = builder.sub(builder.extract_value(values.shape, 0), one)
        with cgutils.for_range(builder, inputs) as loop:
            weights = builder.load(lanes(values, builder.add(loop.index, one)), align=4)
            for row, total in zip(rows, sums, strict=True):
                number = spread(builder.load(place(seen, row, loop.index)))
                product = builder.fmul(number, weights, flags=("contract",))
                more = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(more, total)
        for row, total in zip(rows, sums, strict=True):
            builder.store(builder.load(total), lanes(into, row), align=4)
        return context.get_dummy_value()

    return types.void(values, seen, into, index, index), generate
