"""Run a multi-layer perceptron forward and backward over a block of samples.

Losses and policies are defined elsewhere. From what a forward and a backward pass store,
:func:`forward_jvp` and then :func:`backward_jvp` compute the derivative of the gradient along a
direction (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147).

Arrays are flat, so that one compilation serves networks of any depth and width. With S samples and
L layers:

    sizes         (L + 1,)         numbers of inputs, of each hidden layer's units, and of outputs
    params        (P,)             as :mod:`~maml_ray.kernels.layout` has them
    observations  (S * sizes[0],)
    activations   (S * H,)         of the hidden layers, one after another; H is their padded sum
    outputs       (S * sizes[L],)

Arrays that a function overwrites or adds to come last; of those of S * H numbers it uses the first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.kernels.gemm import multiply_add, padded
from maml_ray.kernels.jit import jit, tanh

Floats = NDArray[np.floating]
Sizes = NDArray[np.int64]


class Network(NamedTuple):
    """A network, or a direction of its parameters, as the passes take it.

    Attributes:
        sizes: (L + 1,).
        relu: the activation is relu; otherwise tanh.
        params: (P,).
        transposed: the weights (outputs, padded inputs) of each layer but the first.
    """

    sizes: Sizes
    relu: bool
    params: Floats
    transposed: Floats


@jit
def make_network(sizes: Sizes, relu: bool, params: Floats) -> Network:
    """Return the network of ``params`` (P or more,)."""
    transposed = np.zeros(_transposed_offset(sizes, len(sizes) - 1), params.dtype)
    network = Network(sizes, relu, params, transposed)
    for layer in range(1, len(sizes) - 1):
        weights, target = _weights(network, layer), _transposed_weights(network, layer)
        for row in range(sizes[layer + 1]):
            for column in range(sizes[layer]):
                target[row, column] = weights[column, row]
    return network


@jit
def hidden_columns(sizes: Sizes) -> int:
    """Return H: the columns that the activations of all hidden layers take per sample."""
    total = 0
    for size in sizes[1:-1]:
        total += padded(size)
    return total


@jit
def _matrix(flat: Floats, start: int, rows: int, columns: int) -> Floats:
    return flat[start : start + rows * columns].reshape((rows, columns))


@jit
def _offset(sizes: Sizes, layer: int) -> int:
    """Return where the parameters of ``layer`` begin."""
    offset = 0
    for lower in range(layer):
        offset += (1 + sizes[lower]) * padded(sizes[lower + 1])
    return offset


@jit
def _biases(network: Network, layer: int) -> Floats:
    """View the biases (1, padded outputs) of a layer."""
    start = _offset(network.sizes, layer)
    return _matrix(network.params, start, 1, padded(network.sizes[layer + 1]))


@jit
def _weights(network: Network, layer: int) -> Floats:
    """View the weights (inputs, padded outputs) of a layer."""
    columns = padded(network.sizes[layer + 1])
    start = _offset(network.sizes, layer) + columns
    return _matrix(network.params, start, network.sizes[layer], columns)


@jit
def _transposed_offset(sizes: Sizes, layer: int) -> int:
    offset = 0
    for lower in range(1, layer):
        offset += sizes[lower + 1] * padded(sizes[lower])
    return offset


@jit
def _transposed_weights(network: Network, layer: int) -> Floats:
    """View the weights (outputs, padded inputs) of a layer that is not the first."""
    sizes = network.sizes
    start = _transposed_offset(sizes, layer)
    return _matrix(network.transposed, start, sizes[layer + 1], padded(sizes[layer]))


@jit
def _hidden(flat: Floats, sizes: Sizes, layer: int, samples: int) -> Floats:
    """View hidden layer ``layer`` in an array shaped like ``activations``."""
    start = samples * hidden_columns(sizes[: layer + 2])
    return _matrix(flat, start, samples, padded(sizes[layer + 1]))


@jit
def _inputs(
    observations: Floats, activations: Floats, sizes: Sizes, layer: int, samples: int
) -> Floats:
    """View the inputs of ``layer``."""
    if layer == 0:
        return _matrix(observations, 0, samples, sizes[0])
    return _hidden(activations, sizes, layer - 1, samples)


@jit
def _results(hidden: Floats, sizes: Sizes, layer: int, samples: int) -> Floats:
    """Return where results of ``layer`` go: in ``hidden``, or of the last in padded rows."""
    if layer < len(sizes) - 2:
        return _hidden(hidden, sizes, layer, samples)
    return np.empty((samples, padded(sizes[-1])), hidden.dtype)


@jit
def _copy_columns(source: Floats, target: Floats) -> None:
    """Copy the first columns, as many as both matrices have."""
    both = min(source.shape[1], target.shape[1])
    for row in range(target.shape[0]):
        for column in range(both):
            target[row, column] = source[row, column]


@jit
def _pad_outputs(flat: Floats, sizes: Sizes, samples: int) -> Floats:
    """Return an array shaped like ``outputs`` as a matrix of padded rows."""
    rows = np.zeros((samples, padded(sizes[-1])), flat.dtype)
    _copy_columns(_matrix(flat, 0, samples, sizes[-1]), rows)
    return rows


@jit
def _activate(values: Floats, relu: bool) -> None:
    zero = values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                value = values[row, column]
                values[row, column] = value if not value <= zero else zero  # NaN propagates
        else:
            for column in range(values.shape[1]):
                values[row, column] = tanh(values[row, column])


@jit
def _multiply_by_slope(values: Floats, activations: Floats, relu: bool, out: Floats) -> None:
    """Multiply by the activation's derivative, which is a function of its value.

    ``out`` is not ``values``: the compiler vectorizes only if it finds them apart.
    """
    one, zero = values.dtype.type(1), values.dtype.type(0)
    for row in range(values.shape[0]):
        if relu:
            for column in range(values.shape[1]):
                slope = one if activations[row, column] > zero else zero
                out[row, column] = values[row, column] * slope
        else:
            for column in range(values.shape[1]):
                slope = one - activations[row, column] * activations[row, column]
                out[row, column] = values[row, column] * slope


@jit
def _push_through_slope(
    act_grad_tangent: Floats,
    preact_grad: Floats,
    activations: Floats,
    preact_tangent: Floats,
    relu: bool,
    out: Floats,
) -> None:
    """Differentiate ``preact_grad = act_grad * slope`` along a direction, into ``out``.

    The slope of tanh changes by ``-2 tanh tanh'`` for each unit of its input.
    """
    one, two, zero = out.dtype.type(1), out.dtype.type(2), out.dtype.type(0)
    for row in range(out.shape[0]):
        if relu:
            for column in range(out.shape[1]):
                slope = one if activations[row, column] > zero else zero
                out[row, column] = act_grad_tangent[row, column] * slope
        else:
            for column in range(out.shape[1]):
                value = activations[row, column]
                change = preact_grad[row, column] * value * preact_tangent[row, column]
                slope = one - value * value
                out[row, column] = act_grad_tangent[row, column] * slope - two * change


@jit
def _add_to_weights(grad: Network, layer: int, inputs: Floats, output_grad: Floats) -> None:
    """Add the block's gradient by the weights of ``layer``."""
    weights = _weights(grad, layer)
    multiply_add(inputs.T, output_grad, weights, weights)


@jit
def _add_to_biases(grad: Network, layer: int, output_grad: Floats) -> None:
    """Add the block's gradient by the biases of ``layer``."""
    biases = _biases(grad, layer)
    for row in range(output_grad.shape[0]):
        for column in range(output_grad.shape[1]):
            biases[0, column] += output_grad[row, column]


@jit
def forward(network: Network, observations: Floats, activations: Floats, outputs: Floats) -> None:
    """Compute the hidden ``activations`` and the ``outputs``."""
    sizes = network.sizes
    samples, last_layer = len(outputs) // sizes[-1], len(sizes) - 2
    for layer in range(last_layer + 1):
        inputs = _inputs(observations, activations, sizes, layer, samples)
        result = _results(activations, sizes, layer, samples)
        multiply_add(inputs, _weights(network, layer), _biases(network, layer), result)
        if layer == last_layer:
            _copy_columns(result, _matrix(outputs, 0, samples, sizes[-1]))
        else:
            _activate(result, network.relu)


@jit
def backward(
    network: Network,
    observations: Floats,
    activations: Floats,
    output_grad: Floats,
    preact_grads: Floats,
    grad: Floats,
) -> None:
    """Add a loss's gradient, from its derivative by the outputs.

    Args:
        network, observations, activations: those of :func:`forward`.
        output_grad: (S * sizes[L],) derivative of the loss by the outputs.
        preact_grads: (S * H,) derivatives by the hidden layers before activation, overwritten.
        grad: (P,) gradient, added to.
    """
    sizes, dtype = network.sizes, network.params.dtype
    samples, widest = len(output_grad) // sizes[-1], padded(sizes.max())
    zeros, scratch = np.zeros(widest, dtype), np.empty(samples * widest, dtype)
    total = Network(sizes, network.relu, grad, network.transposed)
    upper_grad = _pad_outputs(output_grad, sizes, samples)
    for layer in range(len(sizes) - 2, -1, -1):
        inputs = _inputs(observations, activations, sizes, layer, samples)
        _add_to_weights(total, layer, inputs, upper_grad)
        _add_to_biases(total, layer, upper_grad)
        if layer > 0:
            columns = padded(sizes[layer])
            act_grad = _matrix(scratch, 0, samples, columns)
            zero = _matrix(zeros, 0, 1, columns)
            multiply_add(upper_grad, _transposed_weights(network, layer), zero, act_grad)
            upper_grad = _hidden(preact_grads, sizes, layer - 1, samples)
            _multiply_by_slope(act_grad, inputs, network.relu, upper_grad)


@jit
def forward_jvp(
    network: Network,
    direction: Network,
    observations: Floats,
    activations: Floats,
    preact_tangents: Floats,
    act_tangents: Floats,
    output_tangent: Floats,
) -> None:
    """Compute the derivative of a forward pass along a direction of the parameters.

    Args:
        network, observations, activations: those of :func:`forward`.
        direction: of the parameters.
        preact_tangents: (S * H,) derivatives of the hidden layers before activation, overwritten.
        act_tangents: (S * H,) derivatives of the activations, overwritten.
        output_tangent: (S * sizes[L],) derivative of the outputs, overwritten.
    """
    sizes = network.sizes
    samples, last_layer = len(output_tangent) // sizes[-1], len(sizes) - 2
    for layer in range(last_layer + 1):
        inputs = _inputs(observations, activations, sizes, layer, samples)
        tangent = _results(preact_tangents, sizes, layer, samples)
        multiply_add(inputs, _weights(direction, layer), _biases(direction, layer), tangent)
        if layer > 0:
            input_tangent = _hidden(act_tangents, sizes, layer - 1, samples)
            multiply_add(input_tangent, _weights(network, layer), tangent, tangent)
        if layer == last_layer:
            _copy_columns(tangent, _matrix(output_tangent, 0, samples, sizes[-1]))
        else:
            act_tangent = _hidden(act_tangents, sizes, layer, samples)
            result = _hidden(activations, sizes, layer, samples)
            _multiply_by_slope(tangent, result, network.relu, act_tangent)


@jit
def backward_jvp(
    network: Network,
    direction: Network,
    observations: Floats,
    activations: Floats,
    output_grad: Floats,
    preact_grads: Floats,
    preact_tangents: Floats,
    act_tangents: Floats,
    output_grad_tangent: Floats,
    grad_tangent: Floats,
) -> None:
    """Add the derivative of a backward pass's gradient along a direction: a Hessian product.

    Args:
        network, observations, activations: those of :func:`forward`.
        output_grad, preact_grads: those of :func:`backward`.
        direction, preact_tangents, act_tangents: those of :func:`forward_jvp`.
        output_grad_tangent: (S * sizes[L],) derivative of ``output_grad`` along the direction.
        grad_tangent: (P,) derivative of the gradient, added to.
    """
    sizes, dtype = network.sizes, network.params.dtype
    samples, widest = len(output_grad) // sizes[-1], padded(sizes.max())
    zeros, scratch = np.zeros(widest, dtype), np.empty(samples * widest, dtype)
    lower, other = np.empty(samples * widest, dtype), np.empty(samples * widest, dtype)
    total = Network(sizes, network.relu, grad_tangent, network.transposed)
    upper_grad = _pad_outputs(output_grad, sizes, samples)
    upper_tangent = _pad_outputs(output_grad_tangent, sizes, samples)
    for layer in range(len(sizes) - 2, -1, -1):
        inputs = _inputs(observations, activations, sizes, layer, samples)
        _add_to_weights(total, layer, inputs, upper_tangent)
        _add_to_biases(total, layer, upper_tangent)
        if layer == 0:
            break
        act_tangent = _hidden(act_tangents, sizes, layer - 1, samples)
        _add_to_weights(total, layer, act_tangent, upper_grad)
        columns = padded(sizes[layer])
        zero = _matrix(zeros, 0, 1, columns)
        act_grad_tangent = _matrix(scratch, 0, samples, columns)
        multiply_add(upper_tangent, _transposed_weights(network, layer), zero, act_grad_tangent)
        multiply_add(
            upper_grad, _transposed_weights(direction, layer), act_grad_tangent, act_grad_tangent
        )
        upper_grad = _hidden(preact_grads, sizes, layer - 1, samples)
        upper_tangent = _matrix(lower, 0, samples, columns)
        _push_through_slope(
            act_grad_tangent,
            upper_grad,
            inputs,
            _hidden(preact_tangents, sizes, layer - 1, samples),
            network.relu,
            upper_tangent,
        )
        lower, other = other, lower
