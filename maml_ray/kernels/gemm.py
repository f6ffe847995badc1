"""Multiply matrices within a compiled kernel, as fast as a BLAS does and without its calls.

The accumulators of a tile of the result stay in registers while the factors stream by (Goto and
van de Geijn 2008, https://doi.org/10.1145/1356052.1356053, section 6.2; the matrices of a policy
fit a core's cache, so nothing is copied or cut further). Each number of the result is one sum over
the inner axis in its order, whatever the tile and the processor's vectors: its bits depend neither
on the rows beside it nor on the machine.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

from maml_ray.kernels.jit import jit

Floats = NDArray[np.floating]

LANES = 16
"""Columns of a result come in multiples of this. LLVM splits so many numbers into the vectors that
a processor has."""

_HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
_WIDE_ROWS, _WIDE_VECTORS = (4, 4) if _HAS_AVX512 else (6, 1)
_NARROW_ROWS = 8 if _HAS_AVX512 else 6
"""Shapes of tiles: sums that fit 32 registers of 16 numbers, or 16 of 8, and enough of them that
none is waited for."""


@register_jitable  # type: ignore[untyped-decorator]
def padded(count: int) -> int:
    """Round a number of columns up to a multiple of :data:`LANES`."""
    return (count + LANES - 1) // LANES * LANES


@jit
def multiply_add(left: Floats, right: Floats, start: Floats, out: Floats) -> None:
    """Compute ``out = start + left @ right``.

    Args:
        left: (M or more, K or more), transposed or not.
        right: (K, N).
        start: (M, N), possibly ``out`` itself; or (1, N) for every row.
        out: (M, N), overwritten; N is a multiple of :data:`LANES`.
    """
    rows, columns = out.shape
    wide = columns // (_WIDE_VECTORS * LANES) * (_WIDE_VECTORS * LANES)
    for column in range(0, wide, _WIDE_VECTORS * LANES):
        whole = rows // _WIDE_ROWS * _WIDE_ROWS
        for row in range(0, whole, _WIDE_ROWS):
            _tile(left, right, start, out, row, column, _WIDE_ROWS, _WIDE_VECTORS)
        for row in range(whole, rows):
            _tile(left, right, start, out, row, column, 1, _WIDE_VECTORS)
    for column in range(wide, columns, LANES):
        whole = rows // _NARROW_ROWS * _NARROW_ROWS
        for row in range(0, whole, _NARROW_ROWS):
            _tile(left, right, start, out, row, column, _NARROW_ROWS, 1)
        for row in range(whole, rows):
            _tile(left, right, start, out, row, column, 1, 1)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _tile(
    typing: Any,
    left: Any,
    right: Any,
    start: Any,
    out: Any,
    row: Any,
    column: Any,
    rows: Any,
    vectors: Any,
) -> Any:
    """Compute ``rows`` rows and ``vectors`` times ``LANES`` columns of :func:`multiply_add`.

    It is written in LLVM's language because plain loops keep their sums in memory: half as fast.
    """
    shape = rows.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrices = [
            context.make_array(array_type)(context, builder, argument)
            for array_type, argument in zip(signature.args[:4], arguments[:4], strict=True)
        ]
        number = context.get_data_type(signature.args[3].dtype)
        _generate_tile(builder, number, matrices, arguments[4:6], shape)
        return context.get_dummy_value()

    return types.void(left, right, start, out, row, column, rows, vectors), generate


def _generate_tile(
    builder: Any, number: Any, matrices: list[Any], corner: list[Any], shape: tuple[int, int]
) -> None:
    """Generate the code of a tile of ``shape`` at ``corner``, of matrices of type ``number``."""
    (left, right, start, out), (row, column), (num_rows, num_vectors) = matrices, corner, shape
    vector = ir.VectorType(number, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    rows = [builder.add(row, row.type(r)) for r in range(num_rows)]
    columns = [builder.add(column, column.type(LANES * v)) for v in range(num_vectors)]

    def pointer(matrix: Any, i: Any, j: Any, kind: Any) -> Any:
        strides = [builder.extract_value(matrix.strides, axis) for axis in (0, 1)]
        offset = builder.add(builder.mul(i, strides[0]), builder.mul(j, strides[1]))
        data = builder.bitcast(matrix.data, ir.IntType(8).as_pointer())
        return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

    def load_vector(matrix: Any, i: Any, j: Any) -> Any:
        return builder.load(pointer(matrix, i, j, vector), align=4)

    def broadcast(value: Any) -> Any:
        inserted = builder.insert_element(undefined, value, ir.IntType(32)(0))
        return builder.shuffle_vector(inserted, undefined, first_lane)

    zero = ir.Constant(vector, None)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in columns] for _ in rows]
    with cgutils.for_range(builder, builder.extract_value(right.shape, 0)) as loop:
        factors = [load_vector(right, loop.index, j) for j in columns]
        for i, row_sums in zip(rows, sums, strict=True):
            value = broadcast(builder.load(pointer(left, i, loop.index, number)))
            for factor, total in zip(factors, row_sums, strict=True):
                product = builder.fmul(value, factor, flags=("contract",))
                added = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(added, total)
    start_rows = builder.extract_value(start.shape, 0)
    every_row = builder.icmp_signed("==", start_rows, start_rows.type(1))
    for i, row_sums in zip(rows, sums, strict=True):
        start_row = builder.select(every_row, i.type(0), i)
        for j, total in zip(columns, row_sums, strict=True):
            result = builder.fadd(load_vector(start, start_row, j), builder.load(total))
            builder.store(result, pointer(out, i, j, vector), align=4)
