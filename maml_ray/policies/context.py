"""Name the context of a policy, and let a batch of episodes act with a context each.

A context z (C,) is a further input of the first hidden layer, which adds W tanh(z) to that layer's
bias. It starts at 0 and is what the inner steps change: see :mod:`~maml_ray.maml.adaptation`.

Support episodes come in pairs, one with a number of the context raised and one with it lowered by
:data:`OFFSET`: the difference of their returns is a gradient by central differences (Peters and
Schaal 2006, https://doi.org/10.1109/IROS.2006.282564, section III-A). Compared with a gradient from
the noise of actions, an episode differs from its pair in all that it does: it runs at another
speed, say, which tells how far the best speed is.

Axes: K episodes, U units of the first hidden layer, C numbers of the context.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec

Float32 = NDArray[np.float32]

CONTEXT = "context"
CONTEXT_WEIGHT = "context_weight"
OFFSET = np.float32(2.0)
"""How far an episode's context is from that of the policy: the policy sees its tanh, 0.96."""


def context_offsets(episodes: int, size: int) -> Float32:
    """Return by how much each of K episodes moves each number of the context, (K, C).

    Episodes 0 and 1 raise and lower the first number, 2 and 3 the second, and so on, from the first
    again after the last. Of an odd number the last episode moves none.

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


def moved_by(
    spec: PolicySpec, parameters: Mapping[str, Float32], offset: Float32
) -> NumpyParameters:
    """Return the parameters of a policy with its context moved by ``offset`` (C,)."""
    weight = parameters[CONTEXT_WEIGHT]
    before = parameters.get(CONTEXT, np.zeros_like(offset))
    after, bias = before + offset, first_bias(spec)
    shift = (weight * (np.tanh(after) - np.tanh(before))).sum(axis=1)
    return {**parameters, bias: parameters[bias] + shift, CONTEXT: after}


def policy_at_offsets(
    spec: PolicySpec,
    parameters: Mapping[str, Float32],
    normalizer: Normalizer | None,
    offsets: Float32,
) -> NumpyPolicy:
    """Return a policy whose k-th episode acts with the context moved by ``offsets[k]``.

    Args:
        spec: the policy's sizes.
        parameters: meta-parameters; after inner steps also the context.
        normalizer: of observations; None for none.
        offsets: (K, C).
    """
    bias = first_bias(spec)
    biases = [moved_by(spec, parameters, offset)[bias] for offset in offsets]
    return NumpyPolicy(spec, parameters, normalizer, np.stack(biases) - parameters[bias])
