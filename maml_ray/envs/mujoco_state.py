"""Lay out states of MuJoCo simulations in rows of numbers, and observations as parts of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maml_ray.envs.vector_env import Float64


class State(NamedTuple):
    """States of simulations, with any batch axes.

    Attributes:
        positions: (..., nq), ``qpos``.
        velocities: (..., nv), ``qvel``.
        tracked: by name, (..., *shape), the ``tracked_fields`` of a ``MujocoVectorEnv``.
    """

    positions: Float64
    velocities: Float64
    tracked: Mapping[str, Float64]


class Part(NamedTuple):
    """A part of an observation: numbers of one field of the state, in its order.

    Attributes:
        field: ``qpos``, ``qvel`` or a name that was tracked.
        start: index of the first number that is observed.
        low, high: bounds to which numbers are clipped.
    """

    field: str
    start: int = 0
    low: float = -np.inf
    high: float = np.inf


class StateLayout:
    """Where the fields of a state are in its row.

    Args:
        shapes: of the fields by name, in their order in a row; ``qpos`` and ``qvel`` are the first.

    Attributes:
        size: numbers in a row.
        places: where each field is in a row.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.size = 0
        self.places: dict[str, slice] = {}
        for name, shape in shapes.items():
            start, self.size = self.size, self.size + math.prod(shape)
            self.places[name] = slice(start, self.size)

    def view(self, rows: Float64) -> State:
        """View rows (..., size) as states."""
        fields = {
            name: rows[..., place].reshape(*rows.shape[:-1], *self._shapes[name])
            for name, place in self.places.items()
        }
        return State(fields.pop("qpos"), fields.pop("qvel"), fields)


class Selection(NamedTuple):
    """An observation as numbers of a state's row.

    Attributes:
        columns: (D,) their indices.
        low, high: (D,) bounds to which they are clipped.
    """

    columns: NDArray[np.int64]
    low: Float64
    high: Float64

    @classmethod
    def of(cls, parts: Sequence[Part], layout: StateLayout) -> Selection:
        """Select ``parts``.

        Raises:
            ValueError: there is no such field.
        """
        columns: list[int] = []
        low: list[float] = []
        high: list[float] = []
        for part in parts:
            if part.field not in layout.places:
                known = ", ".join(layout.places)
                raise ValueError(f"a state has no field {part.field!r} (there are: {known})")
            place = layout.places[part.field]
            chosen = range(place.start + part.start, place.stop)
            columns += chosen
            low += [part.low] * len(chosen)
            high += [part.high] * len(chosen)
        return cls(np.array(columns, np.int64), np.array(low), np.array(high))

    def observe(self, rows: Float64) -> Float64:
        """Return observations (..., D) of rows (..., size), in a new array."""
        observed: Float64 = rows[..., self.columns]
        # Faster than numpy.clip on arrays of this size; NaN propagates.
        np.maximum(observed, self.low, out=observed)
        np.minimum(observed, self.high, out=observed)
        return observed
