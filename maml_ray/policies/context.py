"""Name the context of a policy, and give it another, or each episode of a batch its own.

A context z (C,) is a further input of the first hidden layer, which adds W tanh(z) to that layer's
bias. It starts at 0 and is what the inner steps change: see :mod:`~maml_ray.maml.adaptation`.

Support episodes come in pairs, one with a number of the context at :data:`OFFSET`, one with it at
minus that: the difference of their returns is a gradient at 0 by central differences (Peters and
Schaal 2006, https://doi.org/10.1109/IROS.2006.282564, section III-A). Compared with a gradient from
the noise of actions, an episode differs from its pair in all that it does: it runs at another
speed, say, which tells how far the best speed is. Contexts that far apart say nothing of the slope
at the adapted one, so that the support episodes of all inner steps act at the same contexts.

Axes: K episodes, U units of the first hidden layer, C numbers of the context.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.policies.spec import NumpyParameters, PolicySpec

Float32 = NDArray[np.float32]

CONTEXT = "context"
CONTEXT_WEIGHT = "context_weight"
OFFSET = np.float32(2.0)
"""How far an episode's context is from 0: the policy sees its tanh, 0.96."""


def context_offsets(episodes: int, size: int) -> Float32:
    """Return the contexts that K support episodes act with, (K, C).

    Episodes 0 and 1 raise and lower the first number, 2 and 3 the second, and so on, from the first
    again after the last. Of an odd number the last episode's context is 0.

    Raises:
        UserError: there is no pair of episodes.
    """
    if episodes < 2:
        raise UserError(
            f"{episodes} support episode is not enough to adapt a context: it takes pairs, one "
            "episode on either side, so at least 2"
        )
    offsets = np.zeros((episodes, size), np.float32)
    for pair in range(episodes // 2):
        offsets[2 * pair : 2 * pair + 2, pair % size] = OFFSET, -OFFSET
    return offsets


def first_bias(spec: PolicySpec) -> str:
    """Return the name of the parameter that holds the effect of the context."""
    return f"{spec.layer_names[0]}.bias"


def with_context(
    spec: PolicySpec, parameters: Mapping[str, Float32], context: Float32
) -> NumpyParameters:
    """Return the parameters of a policy with ``context`` (C,) in place of its own."""
    weight, bias = parameters[CONTEXT_WEIGHT], first_bias(spec)
    before = parameters.get(CONTEXT, np.zeros_like(context))
    shift = (weight * (np.tanh(context) - np.tanh(before))).sum(axis=1)
    return {**parameters, bias: parameters[bias] + shift, CONTEXT: context}


def context_shifts(
    spec: PolicySpec, parameters: Mapping[str, Float32], contexts: Float32
) -> Float32:
    """Return what K contexts (K, C) in place of the policy's own add to the first bias, (K, U)."""
    bias = first_bias(spec)
    biases = [with_context(spec, parameters, context)[bias] for context in contexts]
    return np.stack(biases) - parameters[bias]
