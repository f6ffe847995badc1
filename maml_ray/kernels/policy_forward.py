"""Evaluate a policy's network in NumPy or in a kernel, for single steps and whole episodes.

Each row is computed on its own, with one order of summation: the actions of an episode do not
depend on the number of episodes in the batch.

Axes: K observations, ``D`` observation size, ``A`` action size, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import LIMIT, Normalizer
from maml_ray.kernels.gemm import multiply_add, padded
from maml_ray.kernels.jit import jit, tanh
from maml_ray.kernels.layout import layer_views, network_length

Float32 = NDArray[np.float32]


class PackedMLP(NamedTuple):
    """A multi-layer perceptron as arrays, so that one compilation serves networks of any shape.

    Attributes:
        sizes: numbers of observations, of each hidden layer's units, and of outputs.
        params: of the layers, as :mod:`~maml_ray.kernels.layout` has them.
        relu: the activation is relu, tanh otherwise.
        mean, scale: (D,) of the observation normalizer; zeros and ones without one.
        limit: magnitude to which normalized observations are clipped; infinite without one.
        shifts: (K, U) added to the first layer's outputs before the activation, row by row, in a
            batch of K observations; or (0, U) for nothing.
    """

    sizes: NDArray[np.int64]
    params: Float32
    relu: bool
    mean: Float32
    scale: Float32
    limit: np.float32
    shifts: Float32

    @classmethod
    def from_layers(
        cls,
        layers: Sequence[tuple[Float32, Float32]],
        relu: bool,
        normalizer: Normalizer | None,
        shifts: Float32 | None = None,
    ) -> PackedMLP:
        """Pack ``layers``: weights (outputs, inputs) and biases (outputs,) of each.

        Raises:
            ValueError: ``shifts`` are not of the first layer's size.
        """
        sizes = [layers[0][0].shape[1], *(len(weights) for weights, _ in layers)]
        params = np.zeros(network_length(sizes), np.float32)
        for views, layer in zip(layer_views(sizes, params), layers, strict=True):
            for view, values in zip(views, layer, strict=True):
                view[...] = values
        if shifts is None:
            shifts = np.zeros((0, sizes[1]), np.float32)
        if shifts.shape[1:] != (sizes[1],):
            raise ValueError(f"shifts must have shape (K, {sizes[1]}), got {shifts.shape}")
        mean, scale = np.zeros(sizes[0], np.float32), np.ones(sizes[0], np.float32)
        if normalizer is not None:
            mean[:], scale[:] = normalizer.mean, normalizer.scale
        return cls(
            sizes=np.array(sizes, np.int64),
            params=params,
            relu=relu,
            mean=mean,
            scale=scale,
            limit=np.float32(np.inf if normalizer is None else LIMIT),
            shifts=shifts,
        )

    def forward(self, observations: Float32) -> Float32:
        """Return the outputs (..., A) at ``observations`` (..., D) with any batch axes.

        Raises:
            ValueError: the observations are of another size, or not one for each row of shifts.
        """
        size = self.sizes[0]
        if observations.shape[-1:] != (size,):
            raise ValueError(f"observations must have size {size}, got {observations.shape}")
        rows = observations.reshape(-1, size)
        if len(self.shifts) not in (0, len(rows)):
            raise ValueError(f"a policy of {len(self.shifts)} rows was given {len(rows)}")
        if rows.dtype != np.float32 or not rows.flags.carray:  # another type compiles again
            rows = np.array(rows, np.float32, order="C")
        outputs = np.empty((len(rows), self.sizes[-1]), np.float32)
        mlp_forward(self, rows, self.make_scratch(len(rows)), outputs)
        return outputs.reshape(*observations.shape[:-1], len(outputs.T))

    def make_scratch(self, rows: int) -> Float32:
        """Allocate the scratch memory (2, n) of a layer's inputs and outputs for ``rows`` rows."""
        return np.zeros((2, rows * padded(int(self.sizes.max()))), np.float32)


class ActionMap(NamedTuple):
    """From recorded actions to the environment's: ``clip(factor * action + offset, low, high)``.

    Attributes:
        factor, offset: (A,).
        low, high: (A,) bounds; infinite where nothing is clipped.
    """

    factor: NDArray[Any]
    offset: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]

    def apply(self, actions: Float32) -> NDArray[Any]:
        """Return the environment's actions (..., A), of the map's type, in a new array."""
        mapped = actions * self.factor + self.offset
        clipped: NDArray[Any] = np.minimum(np.maximum(mapped, self.low), self.high)
        return clipped


class PolicyKernel(NamedTuple):
    """A Gaussian policy as arrays, with the noise of whole episodes.

    Attributes:
        network: computes mean actions.
        noise: (T, K, A) added to them, drawn in advance.
        action_map: float32, with offsets of zero: a kernel may fuse a product and a sum, so that
            it would round others differently from :meth:`ActionMap.apply`.
    """

    network: PackedMLP
    noise: Float32
    action_map: ActionMap


@jit
def act(
    policy: PolicyKernel,
    step: int,
    observations: Float32,
    scratch: Float32,
    actions: Float32,
    env_actions: Float32,
) -> None:
    """Compute the actions of a step.

    Args:
        policy: acts, with its noise.
        step: index into the noise.
        observations: (K, D).
        scratch: of :meth:`PackedMLP.make_scratch`, overwritten.
        actions: (K, A) as recorded, overwritten.
        env_actions: (K, A) the environment's, overwritten.
    """
    mlp_forward(policy.network, observations, scratch, actions)
    action_map = policy.action_map
    for i in range(len(actions)):
        for j in range(actions.shape[1]):
            actions[i, j] += policy.noise[step, i, j]
            value = actions[i, j] * action_map.factor[j] + action_map.offset[j]
            # NaN propagates with this order of the arguments.
            env_actions[i, j] = max(min(value, action_map.high[j]), action_map.low[j])


@jit
def mlp_forward(
    network: PackedMLP, observations: Float32, scratch: Float32, outputs: Float32
) -> None:
    """Compute the network's outputs at a batch of observations.

    Args:
        network: the network.
        observations: (K, D), as many as ``network.shifts`` has rows, if any.
        scratch: of :meth:`PackedMLP.make_scratch`, overwritten.
        outputs: (K, A), overwritten.
    """
    rows, sizes, last = len(observations), network.sizes, len(network.sizes) - 2
    inputs = scratch[0][: rows * sizes[0]].reshape(rows, sizes[0])
    for i in range(rows):
        for j in range(sizes[0]):
            value = (observations[i, j] - network.mean[j]) * network.scale[j]
            # NaN propagates with this order of the arguments.
            inputs[i, j] = max(min(value, network.limit), -network.limit)
    start = 0
    for layer in range(last + 1):
        width, columns = sizes[layer], padded(sizes[layer + 1])
        end = start + (1 + width) * columns
        params = network.params[start:end].reshape(1 + width, columns)
        flat = scratch[1 - layer % 2][: rows * columns]
        result = flat.reshape(rows, columns)
        multiply_add(inputs, params[1:], params[:1], result)
        if layer == 0:
            for i in range(len(network.shifts)):
                for j in range(sizes[1]):
                    result[i, j] += network.shifts[i, j]
        if layer < last:
            _activate(network.relu, flat)
        inputs, start = result, end
    for i in range(rows):
        for j in range(sizes[-1]):
            outputs[i, j] = inputs[i, j]


@jit
def _activate(relu: bool, values: Float32) -> None:
    if relu:
        for i in range(len(values)):
            values[i] = max(values[i], np.float32(0.0))
    else:
        for i in range(len(values)):
            values[i] = tanh(values[i])
