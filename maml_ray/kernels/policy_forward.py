"""The policy's network as a compiled loop: what acts, for single steps and for whole episodes.

Each row is worked out alone, with its sums in one order: an episode's actions do not depend on how
many run beside it.

Axes: K observations at once, ``D`` observation size, ``A`` action size, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import LIMIT, Normalizer
from maml_ray.kernels.gemm import TILE_COLUMNS, TILE_ROWS, matmul_bias
from maml_ray.kernels.jit import jit, tanh

Float32 = NDArray[np.float32]


def _filled(count: int, tile: int) -> int:
    return (count + tile - 1) // tile * tile


class Perceptron(NamedTuple):
    """A network of numbers and nothing else, so that one compiled loop goes for all of them.

    Attributes:
        sizes: of the observation, the hidden layers and the outputs.
        widths: the same, filled up to tiles.
        values: of layer after layer the biases, and then the weights of input after input, both
            filled up with zeros.
        relu: the activation; otherwise tanh.
        mean, scale: (D,), of the normalizer: zeros and ones where there is none.
        limit: to which normalized observations are clipped.
    """

    sizes: NDArray[np.int64]
    widths: NDArray[np.int64]
    values: Float32
    relu: bool
    mean: Float32
    scale: Float32
    limit: np.float32

    @classmethod
    def of(
        cls,
        layers: Sequence[tuple[Float32, Float32]],
        relu: bool,
        normalizer: Normalizer | None,
    ) -> Perceptron:
        """The network of ``layers``: weights (outputs, inputs) and biases (outputs,)."""
        size = layers[0][0].shape[1]
        sizes = [size, *(len(weights) for weights, _ in layers)]
        values = []
        for inputs, (weights, biases) in zip(sizes[:-1], layers, strict=True):
            outputs = len(weights)
            filled = np.zeros((1 + inputs, _filled(outputs, TILE_COLUMNS)), np.float32)
            filled[0, :outputs], filled[1:, :outputs] = biases, weights.T
            values.append(filled.reshape(-1))
        mean, scale = np.zeros(size, np.float32), np.ones(size, np.float32)
        if normalizer is not None:
            mean[:], scale[:] = normalizer.mean, normalizer.scale
        return cls(
            sizes=np.array(sizes, np.int64),
            widths=np.array([_filled(each, TILE_COLUMNS) for each in sizes], np.int64),
            values=np.concatenate(values),
            relu=relu,
            mean=mean,
            scale=scale,
            limit=np.float32(np.inf if normalizer is None else LIMIT),
        )

    def outputs(self, observations: Float32) -> Float32:
        """Outputs (..., A) at ``observations`` (..., D), of any batch axes."""
        size = self.sizes[0]
        if observations.shape[-1:] != (size,):
            raise ValueError(f"observations must have size {size}, got {observations.shape}")
        rows = observations.reshape(-1, size)
        if rows.dtype != np.float32 or not rows.flags.carray:  # or it would be compiled once more
            rows = np.array(rows, np.float32, order="C")
        into = np.empty((len(rows), self.sizes[-1]), np.float32)
        evaluate(self, rows, self.rooms(len(rows)), into)
        return into.reshape(*observations.shape[:-1], len(into.T))

    def rooms(self, rows: int) -> Float32:
        """(2, n) room for the layers' inputs and outputs, of ``rows`` rows filled up to tiles."""
        return np.zeros((2, _filled(rows, TILE_ROWS) * int(self.widths.max())), np.float32)


class PolicyKernel(NamedTuple):
    """Who plays whole episodes: acts as ``perceptron`` says, and deviates from it.

    Attributes:
        perceptron: of mean actions.
        deviations: (T, K, A) noise, drawn beforehand.
        scale: of actions, from what is recorded to what the environment takes.
    """

    perceptron: Perceptron
    deviations: Float32
    scale: np.float32


def scaled(actions: Float32, scale: float) -> Float32:
    """Recorded ``actions`` as an environment takes them."""
    return actions if scale == 1.0 else actions * np.float32(scale)


@jit
def evaluate(perceptron: Perceptron, observations: Float32, rooms: Float32, into: Float32) -> None:
    """Outputs, ``into`` (K, A), at ``observations`` (K, D), with ``rooms`` to work in."""
    rows, sizes, widths = len(observations), perceptron.sizes, perceptron.widths
    last = len(sizes) - 2
    filled = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    seen = rooms[0][: filled * widths[0]].reshape(filled, widths[0])
    for i in range(rows):
        for j in range(sizes[0]):
            value = (observations[i, j] - perceptron.mean[j]) * perceptron.scale[j]
            # In this order what is no number stays what it is.
            seen[i, j] = max(min(value, perceptron.limit), -perceptron.limit)
    begin = 0
    for layer in range(last + 1):
        inputs, outputs = sizes[layer], widths[layer + 1]
        end = begin + (1 + inputs) * outputs
        room = rooms[1 - layer % 2][: filled * outputs]
        given = room.reshape(filled, outputs)
        matmul_bias(perceptron.values[begin:end].reshape(1 + inputs, outputs), seen, given)
        if layer < last:
            _activate(perceptron.relu, room)
        seen, begin = given, end
    for i in range(rows):
        for j in range(sizes[-1]):
            into[i, j] = seen[i, j]


@jit
def _activate(relu: bool, values: Float32) -> None:
    if relu:
        for i in range(len(values)):
            values[i] = max(values[i], np.float32(0.0))
    else:
        for i in range(len(values)):
            values[i] = tanh(values[i])
