"""A perceptron's passes over one task's samples, as compiled loops: a block of samples at a time.

A block goes through all layers before the next one, and so stays in the core's own cache. Matrix
products are SciPy's BLAS's. Nothing here knows of losses or policies. What a pass
forward and back leaves behind is enough for the derivative of that gradient along a direction
(Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147): :func:`forward_jvp`, then
:func:`backward_jvp`.

Arrays are flat, for one compilation to serve networks of any depth and width. S samples, L layers:

    sizes         (L + 1,)       numbers of inputs, of each hidden layer's outputs, and of outputs
    theta         (P,)           weight (outputs, inputs) and bias of each layer, first to last
    observations  (S * sizes[0],)
    output        (S * sizes[L],)
    hidden        (S * H,)       of each hidden layer one after another; H is the sum of their sizes

``relu`` chooses the activation; else it is tanh. What is to be filled in comes last.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  the BLAS: there before anybody limits its threads
from numpy.typing import NDArray

from maml_ray.kernels.jit import jit, tanh

Floats = NDArray[np.floating]
Sizes = NDArray[np.int64]

BLOCK = 128
"""Samples that go through the network at a time: 64 outputs of as many float32 are 32 kB."""


@jit
def _rows(flat: Floats, first: int, last: int, width: int) -> Floats:
    """Rows of a matrix of ``width`` columns that begins where ``flat`` does."""
    return flat[first * width : last * width].reshape((last - first, width))


@jit
def _starts(sizes: Sizes) -> Sizes:
    """(L + 1,) where each layer's parameters begin, and where the last one's end."""
    starts = np.zeros(len(sizes), np.int64)
    for layer in range(len(sizes) - 1):
        starts[layer + 1] = starts[layer] + sizes[layer + 1] * (sizes[layer] + 1)
    return starts


@jit
def _weight(flat: Floats, start: int, outputs: int, inputs: int) -> Floats:
    return flat[start : start + outputs * inputs].reshape((outputs, inputs))


@jit
def _bias(flat: Floats, start: int, outputs: int, inputs: int) -> Floats:
    return flat[start + outputs * inputs : start + outputs * (inputs + 1)]


@jit
def _behind(sizes: Sizes, layer: int) -> int:
    """Sum of the sizes of the hidden layers before hidden layer ``layer``."""
    before: int = sizes[1 : layer + 1].sum()
    return before


@jit
def _hidden(flat: Floats, sizes: Sizes, layer: int, samples: int, first: int, last: int) -> Floats:
    """A block of what hidden layer ``layer`` has in ``hidden``."""
    return _rows(flat[samples * _behind(sizes, layer) :], first, last, sizes[layer + 1])


@jit
def _inputs(
    observations: Floats,
    hidden: Floats,
    sizes: Sizes,
    layer: int,
    samples: int,
    first: int,
    last: int,
) -> Floats:
    """A block of the inputs of ``layer``."""
    if layer == 0:
        return _rows(observations, first, last, sizes[0])
    return _hidden(hidden, sizes, layer - 1, samples, first, last)


@jit
def _add_rows(values: Floats, bias: Floats) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            values[row, column] += bias[column]


@jit
def _activate(values: Floats, bias: Floats, relu: bool) -> None:
    """Add the bias, and apply the activation."""
    zero = values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                value = values[row, column] + bias[column]
                values[row, column] = value if not value <= zero else zero  # NaN stays
        else:
            for column in range(values.shape[1]):
                values[row, column] = tanh(values[row, column] + bias[column])


@jit
def _bend(values: Floats, activated: Floats, relu: bool) -> None:
    """Multiply by the derivative of the activation that gave ``activated``."""
    one, zero = values.dtype.type(1), values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                values[row, column] *= one if activated[row, column] > zero else zero
        else:
            for column in range(values.shape[1]):
                values[row, column] *= one - activated[row, column] * activated[row, column]


@jit
def _add(total: Floats, values: Floats) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            total[row, column] += values[row, column]


@jit
def _note(
    gradient: Floats, start: int, slope: Floats, inputs: Floats, scratch: Floats, biased: bool
) -> None:
    """Add a block's part of a layer's gradient; ``biased``: that of the bias as well."""
    outputs, width = slope.shape[1], inputs.shape[1]
    product = _rows(scratch, 0, outputs, width)
    np.dot(slope.T, inputs, product)
    _add(_weight(gradient, start, outputs, width), product)
    if biased:
        bias = _bias(gradient, start, outputs, width)
        for row in range(slope.shape[0]):
            for column in range(outputs):
                bias[column] += slope[row, column]


@jit
def forward(
    sizes: Sizes, relu: bool, theta: Floats, observations: Floats, hidden: Floats, output: Floats
) -> None:
    """What each layer gives, after its activation."""
    samples, starts = len(output) // sizes[-1], _starts(sizes)
    last_layer = len(sizes) - 2
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        for layer in range(last_layer + 1):
            width, outputs = sizes[layer], sizes[layer + 1]
            inputs = _inputs(observations, hidden, sizes, layer, samples, first, last)
            weight = _weight(theta, starts[layer], outputs, width)
            bias = _bias(theta, starts[layer], outputs, width)
            if layer == last_layer:
                given = _rows(output, first, last, outputs)
                np.dot(inputs, weight.T, given)
                _add_rows(given, bias)
            else:
                given = _hidden(hidden, sizes, layer, samples, first, last)
                np.dot(inputs, weight.T, given)
                _activate(given, bias, relu)


@jit
def backward(
    sizes: Sizes,
    relu: bool,
    theta: Floats,
    observations: Floats,
    hidden: Floats,
    slope: Floats,
    slopes: Floats,
    gradient: Floats,
) -> None:
    """From the ``slope`` of a loss by the output to the gradient (P,).

    ``slopes`` are those by what the hidden layers give before their activation, as ``hidden``.
    """
    samples, starts = len(slope) // sizes[-1], _starts(sizes)
    scratch = np.empty(starts[-1], theta.dtype)
    gradient[:] = 0
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        current = _rows(slope, first, last, sizes[-1])
        for layer in range(len(sizes) - 2, -1, -1):
            inputs = _inputs(observations, hidden, sizes, layer, samples, first, last)
            _note(gradient, starts[layer], current, inputs, scratch, True)
            if layer > 0:
                weight = _weight(theta, starts[layer], sizes[layer + 1], sizes[layer])
                below = _hidden(slopes, sizes, layer - 1, samples, first, last)
                np.dot(current, weight, below)
                _bend(below, inputs, relu)
                current = below


@jit
def forward_jvp(
    sizes: Sizes,
    relu: bool,
    theta: Floats,
    observations: Floats,
    hidden: Floats,
    direction: Floats,
    before: Floats,
    output: Floats,
) -> None:
    """The derivative of a pass forward along ``direction`` (P,).

    ``before`` are those of what the hidden layers give before their activation, as ``hidden``.
    """
    samples, starts = len(output) // sizes[-1], _starts(sizes)
    scratch = np.empty(BLOCK * sizes.max(), theta.dtype)
    changes = np.empty(BLOCK * sizes.max(), theta.dtype)
    last_layer = len(sizes) - 2
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        for layer in range(last_layer + 1):
            width, outputs, start = sizes[layer], sizes[layer + 1], starts[layer]
            inputs = _inputs(observations, hidden, sizes, layer, samples, first, last)
            if layer == last_layer:
                moved = _rows(output, first, last, outputs)
            else:
                moved = _hidden(before, sizes, layer, samples, first, last)
            np.dot(inputs, _weight(direction, start, outputs, width).T, moved)
            _add_rows(moved, _bias(direction, start, outputs, width))
            if layer > 0:
                through = _rows(scratch, 0, last - first, outputs)
                change = _rows(changes, 0, last - first, width)
                np.dot(change, _weight(theta, start, outputs, width).T, through)
                _add(moved, through)
            if layer < last_layer:
                change = _rows(changes, 0, last - first, outputs)
                change[:] = moved
                given = _hidden(hidden, sizes, layer, samples, first, last)
                _bend(change, given, relu)


@jit
def backward_jvp(
    sizes: Sizes,
    relu: bool,
    theta: Floats,
    observations: Floats,
    hidden: Floats,
    slope: Floats,
    slopes: Floats,
    direction: Floats,
    before: Floats,
    slope_along: Floats,
    gradient: Floats,
) -> None:
    """The derivative of a pass back along the direction of :func:`forward_jvp`: of the gradient (P,).

    Args:
        sizes, relu, theta, observations, hidden: of the pass forward.
        slope, slopes: of the pass back.
        direction, before: of the direction that was pushed.
        slope_along: derivative of ``slope`` along it.
        gradient: to be filled in.
    """
    samples, starts = len(slope) // sizes[-1], _starts(sizes)
    widest = BLOCK * sizes.max()
    scratch = np.empty(max(starts[-1], widest), theta.dtype)
    changes, upper, lower = (
        np.empty(widest, theta.dtype),
        np.empty(widest, theta.dtype),
        np.empty(widest, theta.dtype),
    )
    gradient[:] = 0
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        rows = last - first
        current = _rows(slope_along, first, last, sizes[-1])
        back = _rows(slope, first, last, sizes[-1])
        for layer in range(len(sizes) - 2, -1, -1):
            width, outputs, start = sizes[layer], sizes[layer + 1], starts[layer]
            inputs = _inputs(observations, hidden, sizes, layer, samples, first, last)
            _note(gradient, start, current, inputs, scratch, True)
            if layer == 0:
                continue
            moved = _hidden(before, sizes, layer - 1, samples, first, last)
            change = _rows(changes, 0, rows, width)
            change[:] = moved
            _bend(change, inputs, relu)
            _note(gradient, start, back, change, scratch, False)
            below = _rows(lower, 0, rows, width)
            through = _rows(scratch, 0, rows, width)
            np.dot(current, _weight(theta, start, outputs, width), below)
            np.dot(back, _weight(direction, start, outputs, width), through)
            _add(below, through)
            _bend(below, inputs, relu)
            back = _hidden(slopes, sizes, layer - 1, samples, first, last)
            if not relu:
                _add_second_bend(below, back, inputs, moved)
            upper, lower = lower, upper
            current = below


@jit
def _add_second_bend(total: Floats, slope: Floats, activated: Floats, before: Floats) -> None:
    """What the second derivative of tanh adds: it is ``-2 tanh tanh'``; that of relu is none."""
    two = total.dtype.type(2)
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            bent = slope[row, column] * activated[row, column] * before[row, column]
            total[row, column] -= two * bent
