"""Run a multi-layer perceptron forward and backward over one task's samples, in blocks of samples.

A block passes through all layers before the next one starts, so it stays in the core's cache.
Matrix products call SciPy's BLAS. Losses and policies are defined elsewhere. From what a forward
and a backward pass store, :func:`forward_jvp` and then :func:`backward_jvp` compute the derivative
of the gradient along a direction (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147).

Arrays are flat, so that one compilation serves networks of any depth and width. With S samples and
L layers:

    sizes         (L + 1,)         numbers of inputs, of each hidden layer's units, and of outputs
    params        (P,)             weight (outputs, inputs) and bias of each layer, first to last
    observations  (S * sizes[0],)
    activations   (S * H,)         of the hidden layers, one after another; H is their sizes' sum
    outputs       (S * sizes[L],)

``relu`` selects the activation, tanh otherwise. Arrays that a function overwrites come last.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  loads BLAS before its threads are limited
from numpy.typing import NDArray

from maml_ray.kernels.jit import jit, tanh

Floats = NDArray[np.floating]
Sizes = NDArray[np.int64]

BLOCK = 128
"""Samples of a block: 64 outputs of as many float32 samples take 32 kB."""


@jit
def _rows(flat: Floats, first: int, last: int, width: int) -> Floats:
    """View rows ``first`` to ``last`` of the matrix of ``width`` columns that ``flat`` starts."""
    return flat[first * width : last * width].reshape((last - first, width))


@jit
def _offsets(sizes: Sizes) -> Sizes:
    """Return the offset (L + 1,) of each layer's parameters, and of the end."""
    offsets = np.zeros(len(sizes), np.int64)
    for layer in range(len(sizes) - 1):
        offsets[layer + 1] = offsets[layer] + sizes[layer + 1] * (sizes[layer] + 1)
    return offsets


@jit
def _weight(flat: Floats, offset: int, outputs: int, inputs: int) -> Floats:
    return flat[offset : offset + outputs * inputs].reshape((outputs, inputs))


@jit
def _bias(flat: Floats, offset: int, outputs: int, inputs: int) -> Floats:
    return flat[offset + outputs * inputs : offset + outputs * (inputs + 1)]


@jit
def _hidden_block(
    flat: Floats, sizes: Sizes, layer: int, samples: int, first: int, last: int
) -> Floats:
    """View a block of hidden layer ``layer`` in an array shaped like ``activations``."""
    return _rows(flat[samples * sizes[1 : layer + 1].sum() :], first, last, sizes[layer + 1])


@jit
def _layer_inputs(
    observations: Floats,
    activations: Floats,
    sizes: Sizes,
    layer: int,
    samples: int,
    first: int,
    last: int,
) -> Floats:
    """View a block of the inputs of ``layer``."""
    if layer == 0:
        return _rows(observations, first, last, sizes[0])
    return _hidden_block(activations, sizes, layer - 1, samples, first, last)


@jit
def _add_bias(values: Floats, bias: Floats) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            values[row, column] += bias[column]


@jit
def _add_bias_and_activate(values: Floats, bias: Floats, relu: bool) -> None:
    zero = values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                value = values[row, column] + bias[column]
                values[row, column] = value if not value <= zero else zero  # NaN propagates
        else:
            for column in range(values.shape[1]):
                values[row, column] = tanh(values[row, column] + bias[column])


@jit
def _multiply_activation_grad(values: Floats, activations: Floats, relu: bool) -> None:
    """Multiply by the activation's derivative, which is a function of its value."""
    one, zero = values.dtype.type(1), values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                values[row, column] *= one if activations[row, column] > zero else zero
        else:
            for column in range(values.shape[1]):
                values[row, column] *= one - activations[row, column] * activations[row, column]


@jit
def _subtract_tanh_curvature(
    total: Floats, preact_grad: Floats, activations: Floats, preact_tangent: Floats
) -> None:
    """Add the term of tanh's second derivative, ``-2 tanh tanh'``, to ``total``."""
    two = total.dtype.type(2)
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            product = (
                preact_grad[row, column] * activations[row, column] * preact_tangent[row, column]
            )
            total[row, column] -= two * product


@jit
def _add(total: Floats, values: Floats) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            total[row, column] += values[row, column]


@jit
def _accumulate_grad(
    grad: Floats,
    offset: int,
    output_grad: Floats,
    inputs: Floats,
    scratch: Floats,
    with_bias: bool,
) -> None:
    """Add a block's contribution to a layer's part of ``grad``, optionally without the bias."""
    outputs, width = output_grad.shape[1], inputs.shape[1]
    product = _rows(scratch, 0, outputs, width)
    np.dot(output_grad.T, inputs, product)
    _add(_weight(grad, offset, outputs, width), product)
    if with_bias:
        bias = _bias(grad, offset, outputs, width)
        for row in range(output_grad.shape[0]):
            for column in range(outputs):
                bias[column] += output_grad[row, column]


@jit
def forward(
    sizes: Sizes,
    relu: bool,
    params: Floats,
    observations: Floats,
    activations: Floats,
    outputs: Floats,
) -> None:
    """Compute the hidden ``activations`` and the ``outputs``."""
    samples, offsets = len(outputs) // sizes[-1], _offsets(sizes)
    last_layer = len(sizes) - 2
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        for layer in range(last_layer + 1):
            width, height = sizes[layer], sizes[layer + 1]
            inputs = _layer_inputs(observations, activations, sizes, layer, samples, first, last)
            weight = _weight(params, offsets[layer], height, width)
            bias = _bias(params, offsets[layer], height, width)
            if layer == last_layer:
                result = _rows(outputs, first, last, height)
                np.dot(inputs, weight.T, result)
                _add_bias(result, bias)
            else:
                result = _hidden_block(activations, sizes, layer, samples, first, last)
                np.dot(inputs, weight.T, result)
                _add_bias_and_activate(result, bias, relu)


@jit
def backward(
    sizes: Sizes,
    relu: bool,
    params: Floats,
    observations: Floats,
    activations: Floats,
    output_grad: Floats,
    preact_grads: Floats,
    grad: Floats,
) -> None:
    """Compute a loss's gradient from its derivative by the outputs.

    Args:
        sizes, relu, params, observations, activations: those of :func:`forward`.
        output_grad: (S * sizes[L],) derivative of the loss by the outputs.
        preact_grads: (S * H,) derivatives by the hidden layers before activation, overwritten.
        grad: (P,) gradient, overwritten.
    """
    samples, offsets = len(output_grad) // sizes[-1], _offsets(sizes)
    scratch = np.empty(offsets[-1], params.dtype)
    grad[:] = 0
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        upper_grad = _rows(output_grad, first, last, sizes[-1])
        for layer in range(len(sizes) - 2, -1, -1):
            inputs = _layer_inputs(observations, activations, sizes, layer, samples, first, last)
            _accumulate_grad(grad, offsets[layer], upper_grad, inputs, scratch, True)
            if layer > 0:
                weight = _weight(params, offsets[layer], sizes[layer + 1], sizes[layer])
                lower_grad = _hidden_block(preact_grads, sizes, layer - 1, samples, first, last)
                np.dot(upper_grad, weight, lower_grad)
                _multiply_activation_grad(lower_grad, inputs, relu)
                upper_grad = lower_grad


@jit
def forward_jvp(
    sizes: Sizes,
    relu: bool,
    params: Floats,
    observations: Floats,
    activations: Floats,
    direction: Floats,
    preact_tangents: Floats,
    output_tangent: Floats,
) -> None:
    """Compute the derivative of a forward pass along a direction of the parameters.

    Args:
        sizes, relu, params, observations, activations: those of :func:`forward`.
        direction: (P,) of the parameters.
        preact_tangents: (S * H,) derivatives of the hidden layers before activation, overwritten.
        output_tangent: (S * sizes[L],) derivative of the outputs, overwritten.
    """
    samples, offsets = len(output_tangent) // sizes[-1], _offsets(sizes)
    scratch = np.empty(BLOCK * sizes.max(), params.dtype)
    activation_tangent = np.empty(BLOCK * sizes.max(), params.dtype)
    last_layer = len(sizes) - 2
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        for layer in range(last_layer + 1):
            width, height, offset = sizes[layer], sizes[layer + 1], offsets[layer]
            inputs = _layer_inputs(observations, activations, sizes, layer, samples, first, last)
            if layer == last_layer:
                tangent = _rows(output_tangent, first, last, height)
            else:
                tangent = _hidden_block(preact_tangents, sizes, layer, samples, first, last)
            np.dot(inputs, _weight(direction, offset, height, width).T, tangent)
            _add_bias(tangent, _bias(direction, offset, height, width))
            if layer > 0:
                through_inputs = _rows(scratch, 0, last - first, height)
                input_tangent = _rows(activation_tangent, 0, last - first, width)
                np.dot(input_tangent, _weight(params, offset, height, width).T, through_inputs)
                _add(tangent, through_inputs)
            if layer < last_layer:
                next_tangent = _rows(activation_tangent, 0, last - first, height)
                next_tangent[:] = tangent
                result = _hidden_block(activations, sizes, layer, samples, first, last)
                _multiply_activation_grad(next_tangent, result, relu)


@jit
def backward_jvp(
    sizes: Sizes,
    relu: bool,
    params: Floats,
    observations: Floats,
    activations: Floats,
    output_grad: Floats,
    preact_grads: Floats,
    direction: Floats,
    preact_tangents: Floats,
    output_grad_tangent: Floats,
    grad_tangent: Floats,
) -> None:
    """Compute the derivative of a backward pass's gradient along a direction: a Hessian product.

    Args:
        sizes, relu, params, observations, activations: those of :func:`forward`.
        output_grad, preact_grads: those of :func:`backward`.
        direction, preact_tangents: those of :func:`forward_jvp`.
        output_grad_tangent: (S * sizes[L],) derivative of ``output_grad`` along the direction.
        grad_tangent: (P,) derivative of the gradient, overwritten.
    """
    samples, offsets = len(output_grad) // sizes[-1], _offsets(sizes)
    widest = BLOCK * sizes.max()
    scratch = np.empty(max(offsets[-1], widest), params.dtype)
    activation_tangent, upper, lower = (
        np.empty(widest, params.dtype),
        np.empty(widest, params.dtype),
        np.empty(widest, params.dtype),
    )
    grad_tangent[:] = 0
    for first in range(0, samples, BLOCK):
        last = min(first + BLOCK, samples)
        rows = last - first
        upper_tangent = _rows(output_grad_tangent, first, last, sizes[-1])
        upper_grad = _rows(output_grad, first, last, sizes[-1])
        for layer in range(len(sizes) - 2, -1, -1):
            width, height, offset = sizes[layer], sizes[layer + 1], offsets[layer]
            inputs = _layer_inputs(observations, activations, sizes, layer, samples, first, last)
            _accumulate_grad(grad_tangent, offset, upper_tangent, inputs, scratch, True)
            if layer == 0:
                continue
            preact_tangent = _hidden_block(preact_tangents, sizes, layer - 1, samples, first, last)
            input_tangent = _rows(activation_tangent, 0, rows, width)
            input_tangent[:] = preact_tangent
            _multiply_activation_grad(input_tangent, inputs, relu)
            _accumulate_grad(grad_tangent, offset, upper_grad, input_tangent, scratch, False)
            lower_tangent = _rows(lower, 0, rows, width)
            through_weight = _rows(scratch, 0, rows, width)
            np.dot(upper_tangent, _weight(params, offset, height, width), lower_tangent)
            np.dot(upper_grad, _weight(direction, offset, height, width), through_weight)
            _add(lower_tangent, through_weight)
            _multiply_activation_grad(lower_tangent, inputs, relu)
            upper_grad = _hidden_block(preact_grads, sizes, layer - 1, samples, first, last)
            if not relu:
                _subtract_tanh_curvature(lower_tangent, upper_grad, inputs, preact_tangent)
            upper, lower = lower, upper
            upper_tangent = lower_tangent
