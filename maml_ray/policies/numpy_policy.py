"""The policy for inference, without the cost of a torch call on a handful of observations.

Axes: ``...`` any batch axes, ``D`` observation size, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.kernels.policy_forward import Perceptron
from maml_ray.policies.spec import LOG_STD, PolicySpec


class NumpyPolicy:
    """The policy for inference: batches of observations to actions, of numpy arrays.

    Agrees with :func:`maml_ray.maml.distributions.distribution` up to rounding, once the latter's
    observations are normalized. Not differentiable.

    Args:
        spec: the policy's sizes.
        parameters: by name; what else is in there is left alone.
        normalizer: of observations; None to take them as they are.

    Attributes:
        spec: as given.
        perceptron: the network, for who acts in a compiled loop.
        log_std, std: (A,) of actions; empty where they are discrete.
    """

    def __init__(
        self,
        spec: PolicySpec,
        parameters: Mapping[str, NDArray[np.float32]],
        normalizer: Normalizer | None = None,
    ) -> None:
        self.spec = spec
        layers = [
            (parameters[f"{name}.weight"], parameters[f"{name}.bias"]) for name in spec.layer_names
        ]
        self.perceptron = Perceptron.of(layers, spec.activation == "relu", normalizer)
        floor = np.float32(spec.min_log_std)
        self.log_std = np.maximum(parameters.get(LOG_STD, np.zeros(0, np.float32)), floor)
        with np.errstate(over="ignore"):  # an adaptation that explodes is found by its actions
            self.std = np.exp(self.log_std)

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean actions or logits (..., A) for ``observations`` (..., D), as the environment's."""
        return self.perceptron.outputs(observations)
