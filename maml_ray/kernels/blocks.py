"""Cut one task's samples into blocks, which stay in a core's cache from one pass to the next.

Blocks are flat, as :mod:`~maml_ray.kernels.mlp` takes them.
"""

from __future__ import annotations

import numpy as np

from maml_ray.kernels.jit import jit
from maml_ray.kernels.mlp import Sizes, hidden_columns
from maml_ray.kernels.types import Floats, Samples

BLOCK = 256
"""Samples of a block: 64 outputs of as many float32 samples take 64 kB."""


@jit
def block(flat: Floats, first: int, last: int, width: int) -> Floats:
    """View samples ``first`` to ``last`` of an array that has ``width`` numbers for each."""
    return flat[first * width : last * width]


@jit
def samples_block(samples: Samples[Floats], sizes: Sizes, first: int, last: int) -> Samples[Floats]:
    """View samples ``first`` to ``last``."""
    return Samples(
        block(samples.observations.reshape(-1), first, last, sizes[0]),
        block(samples.actions.reshape(-1), first, last, sizes[-1]),
        samples.log_probs.reshape(-1)[first:last],
        samples.advantages.reshape(-1)[first:last],
        samples.weights.reshape(-1)[first:last],
    )


@jit
def hidden_scratch(sizes: Sizes, like: Floats) -> Floats:
    """Return an uninitialized array for what the hidden layers have of a block's samples."""
    return np.empty(BLOCK * hidden_columns(sizes), like.dtype)


@jit
def output_scratch(sizes: Sizes, like: Floats) -> Floats:
    """Return an uninitialized array for what the outputs have of a block's samples."""
    return np.empty(BLOCK * sizes[-1], like.dtype)
