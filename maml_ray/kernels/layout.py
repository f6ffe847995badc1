"""Lay out a network's parameters for the kernels: in one array, so that rows are whole vectors.

Each layer is a matrix of 1 + inputs rows, the biases and then the weights of each input, with
:func:`~maml_ray.kernels.gemm.padded` columns. The layers follow one another. Kernels may leave any
numbers in the columns that pad a matrix, and use none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from maml_ray.kernels.gemm import padded

Array = NDArray[Any]


def network_length(sizes: Sequence[int]) -> int:
    """Return how many numbers the layers between ``sizes``, inputs to outputs, take."""
    return sum((1 + inputs) * padded(outputs) for inputs, outputs in pairwise(sizes))


def layer_views(sizes: Sequence[int], network: Array) -> list[tuple[Array, Array]]:
    """Return views of each layer's weights (outputs, inputs) and biases (outputs,).

    Args:
        sizes: of inputs, hidden layers and outputs.
        network: whose first numbers are the layers.
    """
    views, start = [], 0
    for inputs, outputs in pairwise(sizes):
        end = start + (1 + inputs) * padded(outputs)
        matrix = network[start:end].reshape(1 + inputs, padded(outputs))
        views.append((matrix[1:, :outputs].T, matrix[0, :outputs]))
        start = end
    return views
