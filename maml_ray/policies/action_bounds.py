"""Map a policy's continuous actions into the bounds of an environment's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box

if TYPE_CHECKING:
    from maml_ray.kernels.policy_forward import ActionMap

_MODES = ("clip", "rescale", "none")
"""Values of ``policy.action_bounds``."""


@dataclass(frozen=True)
class ActionBounds:
    """The box of an environment's actions, and how a policy's actions get into it.

    Attributes:
        mode: ``clip`` them; ``rescale`` [-1, 1] to the box, then clip; or ``none``: neither.
        low, high: (A,) bounds; where there are none, the largest numbers of the type.
        dtype: type of the environment's actions.
    """

    mode: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str

    @classmethod
    def of(cls, mode: str, space: Box) -> ActionBounds:
        """Return the bounds of a box with one axis.

        Raises:
            ValueError: there is no such mode, or [-1, 1] cannot be rescaled to the box, since it
                has no bounds.
        """
        if mode not in _MODES:
            raise ValueError(
                f"its action_bounds = {mode!r:.60} is not known: write clip, rescale or none"
            )
        dtype: np.dtype[Any] = np.dtype(space.dtype)
        limit = float(np.finfo(np.promote_types(dtype, np.float64)).max)
        limit = min(limit, float(np.finfo(dtype).max))
        low, high = (
            np.clip(np.asarray(bound, np.float64), -limit, limit)
            for bound in (space.low, space.high)
        )
        if mode == "rescale" and not (high / 2 - low / 2 < np.finfo(np.float32).max / 4).all():
            raise ValueError(
                f"policy.action_bounds = rescale needs bounds, and the actions {space} have none: "
                "use clip, and policy.action_scale for their size"
            )
        return cls(mode, tuple(low.tolist()), tuple(high.tolist()), dtype.name)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], action_size: int) -> ActionBounds:
        """Return the bounds that were saved as ``dataclasses.asdict`` in JSON.

        Raises:
            TypeError, ValueError: they are not bounds of ``action_size`` actions.
        """
        saved = cls(**data)
        low, high = (tuple(map(float, each)) for each in (saved.low, saved.high))
        is_box = len(low) == len(high) == action_size and all(
            -math.inf < a <= b < math.inf for a, b in zip(low, high, strict=True)
        )
        is_real = np.issubdtype(np.dtype(saved.dtype), np.floating)
        if saved.mode not in _MODES or not is_box or not is_real:
            raise ValueError(f"{saved!r:.120} are not bounds of its actions")
        return cls(saved.mode, low, high, saved.dtype)


def action_map(bounds: ActionBounds | None, size: int, scale: float) -> ActionMap:
    """Return the map from recorded continuous actions (..., ``size``) to the environment's.

    Args:
        bounds: of the environment's actions; None if they are not known.
        size: A.
        scale: multiplies first; what it yields is rescaled to the bounds or clipped.
    """
    # Not above: Numba would delay every command, and completion in the shell.
    from maml_ray.kernels.policy_forward import ActionMap

    dtype = np.result_type(np.float32, np.float32 if bounds is None else bounds.dtype)
    factor = np.full(size, scale, dtype)
    offset, infinite = np.zeros_like(factor), np.full_like(factor, np.inf)
    if bounds is None or bounds.mode == "none":
        return ActionMap(factor, offset, -infinite, infinite)
    low, high = np.array(bounds.low, dtype), np.array(bounds.high, dtype)
    if bounds.mode == "rescale":
        half = high / 2 - low / 2
        factor, offset = factor * half, low + half
    return ActionMap(factor, offset, low, high)
