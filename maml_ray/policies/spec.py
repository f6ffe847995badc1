"""Describe a policy by its sizes and its parameters as NumPy arrays.

This is all that acting, saving and sending a policy need. They avoid PyTorch, whose import takes
1.5 s of a core and 180 MB in each process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.spaces.utils import flatten_space
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.config.sections import PolicySettings
from maml_ray.policies.action_bounds import ActionBounds, action_map

if TYPE_CHECKING:
    from maml_ray.kernels.policy_forward import ActionMap

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
        action_scale: factor on a continuous action, before its bounds.
        first_action: the environment's number for the first discrete action.
        action_bounds: of continuous actions; None if they are discrete, or of a policy saved when
            there were no bounds.
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
    action_bounds: ActionBounds | None = None

    @classmethod
    def from_spaces(
        cls,
        settings: PolicySettings,
        observations: Space[Any],
        actions: Space[Any],
        default_bounds: str = "clip",
    ) -> PolicySpec:
        """Combine the policy's settings and the environment's spaces.

        Args:
            settings: of the policy.
            observations, actions: of the environment.
            default_bounds: what the tasks want unless the settings say ``action_bounds``.

        Raises:
            ValueError: observations are not a vector, actions neither a vector of real numbers nor
                discrete, or the bounds cannot be rescaled to.
        """
        observation_size = _observation_size(observations)
        if isinstance(actions, Discrete):
            size, first, bounds = int(actions.n), int(actions.start), None
        else:
            box = _checked_actions(actions)
            bounds = ActionBounds.of(settings.action_bounds or default_bounds, box)
            size, first = box.shape[0], 0
        return cls(
            observation_size=observation_size,
            action_size=size,
            hidden_sizes=settings.hidden_sizes,
            activation=settings.activation,
            initial_log_std=settings.initial_log_std,
            min_log_std=settings.min_log_std,
            discrete=isinstance(actions, Discrete),
            action_scale=settings.action_scale,
            first_action=first,
            action_bounds=bounds,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicySpec:
        """Return the spec that was saved as ``dataclasses.asdict`` in JSON.

        Raises:
            TypeError, ValueError: it is none.
        """
        values = {**data, "hidden_sizes": tuple(data["hidden_sizes"])}
        if (saved := data.get("action_bounds")) is not None:
            values["action_bounds"] = ActionBounds.from_json(saved, data["action_size"])
        return cls(**values)

    @property
    def action_dtype(self) -> str:
        """Type of the environment's continuous actions."""
        return "float32" if self.action_bounds is None else self.action_bounds.dtype

    @cached_property
    def action_map(self) -> ActionMap:
        """The map from recorded continuous actions to the environment's.

        ``action_scale`` multiplies first; what it yields is rescaled to the bounds or clipped.
        """
        return action_map(self.action_bounds, self.action_size, self.action_scale)

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


def _observation_size(observations: Space[Any]) -> int:
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise ValueError(
            f"observations must be a Box with one axis, got {observations!s:.300}: "
            + _how_to_flatten(observations)
        )
    return observations.shape[0]


def _checked_actions(actions: Space[Any]) -> Box:
    if not isinstance(actions, Box) or len(actions.shape) != 1:
        raise ValueError(
            f"actions must be Discrete or a Box with one axis, got {actions}: convert them in "
            "a gymnasium.ActionWrapper, several choices to one Discrete of all combinations"
        )
    if not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"actions must be Discrete or a Box of real numbers, got the integers of {actions}: "
            "give a Box of float32 and round in the environment, or number all combinations in "
            "one Discrete"
        )
    return actions


def _how_to_flatten(space: Space[Any]) -> str:
    """Return what makes a vector of a space's elements."""
    try:
        if isinstance(flatten_space(space), Box):
            return "wrap the environment in gymnasium.wrappers.FlattenObservation"
    except NotImplementedError:  # a space that a package defines
        pass
    return (
        "Gymnasium cannot flatten them all, so make a vector of them in a "
        "gymnasium.ObservationWrapper, without text and what else has no fixed size"
    )


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
