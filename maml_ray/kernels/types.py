"""Define the named tuples of arrays that cross layers: samples, and Gaussian action distributions.

Their fields are NumPy arrays in rollouts and kernels, and tensors in the losses: one definition, so
that data keep their shape from trajectories to gradient.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")
"""An array or a tensor."""
Floats = NDArray[np.floating[Any]]


class Samples(NamedTuple, Generic[Array]):
    """The steps of one task and phase; with a leading axis, of many tasks.

    K episodes, T time steps, S = K T samples, D observation size, A action size. What goes through
    the network is flat, so that one large matrix product serves all samples.

    Attributes:
        observations: (S, D), episode after episode, normalized if the policy asks for it.
        actions: (S, A), or (S, 1) of a discrete policy.
        log_probs: (K, T) under the behavior policy, constants.
        advantages: (K, T).
        weights: (K, T): 1 / number of valid steps, 0 after an episode's end, so that a mean is a
            dot product.
    """

    observations: Array
    actions: Array
    log_probs: Array
    advantages: Array
    weights: Array


class Gaussian(NamedTuple, Generic[Array]):
    """A batch of diagonal Gaussians: ``mean`` (..., A) and ``log_std`` (A,) or broadcastable."""

    mean: Array
    log_std: Array
