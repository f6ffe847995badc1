"""Evaluate a policy without PyTorch, whose call overhead dominates on a few observations.

Axes: ``...`` any batch axes, ``D`` observation size, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.kernels.policy_forward import PackedMLP
from maml_ray.policies.spec import LOG_STD, PolicySpec


class NumpyPolicy:
    """A policy for inference on NumPy arrays; not differentiable.

    Agrees up to rounding with :func:`maml_ray.maml.distributions.distribution`, which takes
    observations that are normalized already.

    Args:
        spec: the policy's sizes.
        parameters: arrays by name; names that the policy lacks are ignored.
        normalizer: of observations; None for none.
        shifts: (K, U) added to the first layer's biases for each row of a batch of K observations;
            None for none.

    Attributes:
        spec, normalizer: as passed.
        network: the network, for kernels; without the normalizer if that needs float64.
        log_std, std: (A,) of actions; empty if they are discrete.
    """

    def __init__(
        self,
        spec: PolicySpec,
        parameters: Mapping[str, NDArray[np.float32]],
        normalizer: Normalizer | None = None,
        shifts: NDArray[np.float32] | None = None,
    ) -> None:
        self.spec, self.normalizer = spec, normalizer
        layers = [
            (parameters[f"{name}.weight"], parameters[f"{name}.bias"]) for name in spec.layer_names
        ]
        inside = None if self.needs_float64 else normalizer
        self.network = PackedMLP.from_layers(layers, spec.activation == "relu", inside, shifts)
        floor = np.float32(spec.min_log_std)
        self.log_std = np.maximum(parameters.get(LOG_STD, np.zeros(0, np.float32)), floor)
        with np.errstate(over="ignore"):  # a diverged adaptation is detected by its actions
            self.std = np.exp(self.log_std)

    @property
    def needs_float64(self) -> bool:
        """Whether observations must not be rounded to float32, as kernels do, before acting."""
        return self.normalizer is not None and self.normalizer.needs_float64

    def forward(self, observations: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return mean actions or logits (..., A) at unnormalized ``observations`` (..., D)."""
        if self.normalizer is not None and self.needs_float64:
            observations = self.normalizer(observations)
        return self.network.forward(observations)
