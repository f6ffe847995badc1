"""What a policy is made of: its sizes, and its parameters as NumPy arrays.

All that acts, saves or sends a policy needs no more than this, and does without PyTorch: whose
import is a second and a half of a core and 180 MB of every process.
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
    """Sizes of a policy; with it a parameter dictionary can be read.

    Attributes:
        observation_size: D.
        action_size: A.
        hidden_sizes: of the hidden layers, first to last.
        activation: between them.
        initial_log_std: of a continuous policy's fresh parameters.
        min_log_std: the floor of a continuous policy's log standard deviation.
        discrete: whether actions are numbers to choose from.
        action_scale: the environment gets a continuous action times this.
        first_action: the environment's number of the first discrete action.
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
        """Join the policy's settings and the task's spaces.

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
        """Name of the last layer: what its outputs are."""
        return "logits" if self.discrete else "mean"

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the linear layers, first to last."""
        return (*(f"hidden_{i}" for i in range(len(self.hidden_sizes))), self.head)

    @property
    def recorded_action_size(self) -> int:
        """Last axis of recorded actions."""
        return 1 if self.discrete else self.action_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in order."""
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
    """Published parameters: all that an actor needs to act and adapt.

    Attributes:
        version: which they are.
        values: float32 arrays by name.
        normalizer: of observations; None to take them as they are.
    """

    version: int
    values: Mapping[str, NDArray[np.float32]]
    normalizer: Normalizer | None


def initial_parameters(spec: PolicySpec, rng: np.random.Generator) -> NumpyParameters:
    """Fresh float32 parameters: Xavier-uniform weights, zero biases.

    The last layer starts a hundred times smaller than Xavier, so that the first actions are
    decided by the noise alone and not by the draw of the weights (Andrychowicz et al. 2021,
    https://arxiv.org/abs/2006.05990, section 3.2).
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
