"""The policy for inference, without the cost of a torch call on a handful of observations.

Axes: ``...`` any batch axes, ``D`` observation size, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.normalisation import Normaliser
from maml_ray.policy import LOG_STD, PolicySpec


class NumpyPolicy:
    """The policy for inference: batches of observations to actions, in float32 numpy.

    Agrees with :func:`maml_ray.policy.distribution` up to rounding, once the latter's observations
    are normalised. Not differentiable.

    Args:
        spec: the policy's sizes.
        parameters: by name; what else is in there is left alone.
        normaliser: of observations; None to take them as they are.
    """

    def __init__(
        self,
        spec: PolicySpec,
        parameters: Mapping[str, NDArray[np.float32]],
        normaliser: Normaliser | None = None,
    ) -> None:
        self.spec = spec
        self._normaliser = normaliser
        self._weights = [
            np.ascontiguousarray(parameters[f"{name}.weight"].T) for name in spec.layer_names
        ]
        self._biases = [parameters[f"{name}.bias"] for name in spec.layer_names]
        self._spread = _Spread((), normaliser, self._biases)
        floor = np.float32(spec.min_log_std)
        self.log_std = np.maximum(parameters.get(LOG_STD, np.zeros(0, np.float32)), floor)
        with np.errstate(over="ignore"):  # an adaptation that explodes is found by its actions
            self.std = np.exp(self.log_std)

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean actions or logits (..., A) for ``observations`` (..., D), as the environment's."""
        batch = observations.shape[:-1]
        if self._spread.batch != batch:
            self._spread = _Spread(batch, self._normaliser, self._biases)
        spread, relu = self._spread, self.spec.activation == "relu"
        hidden = observations if spread.normaliser is None else spread.normaliser(observations)
        for weight, bias in zip(self._weights[:-1], spread.biases[:-1], strict=True):
            hidden = np.dot(hidden, weight)
            hidden += bias
            if relu:
                np.maximum(hidden, 0.0, out=hidden)
            else:
                np.tanh(hidden, out=hidden)
        result: NDArray[np.float32] = np.dot(hidden, self._weights[-1])
        result += spread.biases[-1]
        return result


class _Spread:
    """A policy's constants, repeated over a batch of observations.

    Adding two arrays of one shape takes numpy half the time of broadcasting a vector, and a
    rollout does it thousands of times with the same batch.
    """

    def __init__(
        self,
        batch: tuple[int, ...],
        normaliser: Normaliser | None,
        biases: list[NDArray[np.float32]],
    ) -> None:
        def spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.ascontiguousarray(np.broadcast_to(values, batch + values.shape))

        self.batch = batch
        self.biases = [spread(bias) for bias in biases]
        self.normaliser = normaliser and Normaliser(
            spread(normaliser.mean), spread(normaliser.scale)
        )
