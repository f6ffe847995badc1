"""Describe a policy by its sizes and its parameters as NumPy arrays.

This is all that acting, saving and sending a policy need. They avoid PyTorch, whose import takes
1.5 s of a core and 180 MB in each process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import PolicySettings

NumpyParameters = dict[str, NDArray[np.float32]]

LOG_STD = "log_std"


@dataclass(frozen=True)
class PolicySpec:
    """Sizes of a policy: names and shapes of its parameters follow from them.

    Attributes:
        observation_size: D.
        action_size: A.
        hidden_sizes: units of the hidden layers, first to last.
        activation: ``tanh`` or ``relu``, after each hidden layer.
        initial_log_std: log standard deviation of a new continuous policy.
        min_log_std: lower bound of a continuous policy's log standard deviation.
        discrete: actions are integers with probabilities; otherwise Gaussian vectors.
        action_scale: factor from a continuous action to the environment's.
        first_action: the environment's number for the first discrete action.
    """

    observation_size: int
    action_size: int
    hidden_sizes: tuple[int, ...]
    activation: str
    initial_log_std: float
    min_log_std: float
    discrete: bool = False
    action_scale: float = 1.0
    first_action: int = 0

    @classmethod
    def from_spaces(
        cls, settings: PolicySettings, observations: Space[Any], actions: Space[Any]
    ) -> PolicySpec:
        """Combine the policy's settings and the environment's spaces.

        Raises:
            ValueError: observations are not a vector, or actions neither a vector nor discrete.
        """
        if not isinstance(observations, Box) or len(observations.shape) != 1:
            raise ValueError(f"observations must be a Box with one axis, got {observations}")
        if isinstance(actions, Discrete):
            size, first = int(actions.n), int(actions.start)
        elif isinstance(actions, Box) and len(actions.shape) == 1:
            size, first = int(actions.shape[0]), 0
        else:
            raise ValueError(f"actions must be Discrete or a Box with one axis, got {actions}")
        return cls(
            observation_size=observations.shape[0],
            action_size=size,
            hidden_sizes=settings.hidden_sizes,
            activation=settings.activation,
            initial_log_std=settings.initial_log_std,
            min_log_std=settings.min_log_std,
            discrete=isinstance(actions, Discrete),
            action_scale=settings.action_scale,
            first_action=first,
        )

    @property
    def head(self) -> str:
        """Name of the last layer, after its outputs."""
        return "logits" if self.discrete else "mean"

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the linear layers, first to last."""
        return (*(f"hidden_{i}" for i in range(len(self.hidden_sizes))), self.head)

    @property
    def recorded_action_size(self) -> int:
        """Size of the last axis of recorded actions."""
        return 1 if self.discrete else self.action_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each parameter, in order."""
        sizes = (self.observation_size, *self.hidden_sizes, self.action_size)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in zip(self.layer_names, pairwise(sizes), strict=True):
            shapes[f"{name}.weight"] = (outputs, inputs)
            shapes[f"{name}.bias"] = (outputs,)
        if not self.discrete:
            shapes[LOG_STD] = (self.action_size,)
        return shapes


@dataclass(frozen=True)
class PolicyParameters:
    """A policy snapshot: what a rollout actor needs to act and adapt.

    Attributes:
        version: number of meta-updates before it.
        values: float32 arrays by name.
        normalizer: of observations; None for none.
    """

    version: int
    values: Mapping[str, NDArray[np.float32]]
    normalizer: Normalizer | None


def initial_parameters(spec: PolicySpec, rng: np.random.Generator) -> NumpyParameters:
    """Draw initial float32 parameters: Xavier-uniform weights, zero biases.

    The last layer is scaled by 0.01, so that the first actions depend on the noise and hardly on
    the initial weights (Andrychowicz et al. 2021, https://arxiv.org/abs/2006.05990, section 3.2).
    """
    parameters: NumpyParameters = {}
    for name, shape in spec.shapes().items():
        if name == LOG_STD:
            value = np.full(shape, spec.initial_log_std)
        elif name.endswith(".bias"):
            value = np.zeros(shape)
        else:
            limit = math.sqrt(6.0 / sum(shape)) * (0.01 if name.startswith(spec.head) else 1.0)
            value = rng.uniform(-limit, limit, shape)
        parameters[name] = value.astype(np.float32)
    return parameters
