"""Scale the masses, inertias, damping and friction of a MuJoCo model, reversibly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import mujoco
import numpy as np

from maml_ray.common.numbers import finite_floats
from maml_ray.config.error_messages import did_you_mean

_KINDS = {
    "mass": "body_mass",
    "inertia": "body_inertia",
    "damping": "dof_damping",
    "friction": "geom_friction",
}


class _Parameter(NamedTuple):
    """A number of the model: its array's name, its indices there and its original value."""

    array: str
    indices: tuple[int, ...]
    original: float


class ModelRandomizer:
    """Multiplies the dynamics parameters of a model by name.

    Names are ``mass/torso``, ``inertia/torso/x``, ``damping/thigh_joint``,
    ``friction/foot_geom/slide`` (and ``spin``, ``roll``). Parameters that are zero have none.

    Args:
        model: as loaded; :meth:`apply` modifies it in place.

    Attributes:
        multipliers: those last applied.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._originals = {name: getattr(model, name).copy() for name in _KINDS.values()}
        self._parameters = {
            name: _Parameter(array, index, float(self._originals[array][index]))
            for name, array, index in _named_parameters(model)
            if self._originals[array][index] != 0.0
        }
        self.multipliers: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names by kind, within a kind in the model's order."""
        return tuple(self._parameters)

    def validate(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """Return ``multipliers`` as floats.

        Raises:
            ValueError: a name is unknown, or a multiplier is not a positive number.
        """
        for name in multipliers:
            if name not in self._parameters:
                raise ValueError(
                    f"{name!r} is not among the dynamics{did_you_mean(name, self._parameters)} "
                    f"(there are: {self._summary()})"
                )
        values = finite_floats(multipliers)
        for name, value in values.items():
            if value <= 0.0:
                raise ValueError(f"the multiplier {name} must be above zero, got {value:g}")
        return values

    def apply(self, multipliers: Mapping[str, float]) -> None:
        """Set the model to its original parameters times ``multipliers``; missing ones are 1.

        Raises:
            ValueError: see :meth:`validate`; the model is then unchanged.
        """
        values = self.validate(multipliers)
        for array, original in self._originals.items():
            getattr(self._model, array)[:] = original
        for name, value in values.items():
            array, indices, original = self._parameters[name]
            getattr(self._model, array)[indices] = original * value
        # Recomputes constants that derive from the masses, such as the inverse weights that scale
        # the solver's constraints. The reference code leaves them those of the original model.
        mujoco.mj_setConst(self._model, self._scratch)
        self.multipliers = values

    def _summary(self) -> str:
        """List the names compactly, kind by kind."""
        parts: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        for name in self._parameters:
            kind, owner = name.split("/")[:2]
            if owner not in parts[kind]:
                parts[kind].append(owner)
        axes = {"inertia": "/x|y|z", "friction": "/slide|spin|roll"}
        return ", ".join(
            f"{kind}/{'|'.join(owners)}{axes.get(kind, '')}" for kind, owners in parts.items()
        )


def _named_parameters(model: mujoco.MjModel) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the name, array and index of each parameter, zero ones included."""
    bodies = [model.body(i).name for i in range(1, model.nbody)]  # 0 is the world
    for i, body in enumerate(bodies, start=1):
        yield f"mass/{body}", "body_mass", (i,)
    for i, body in enumerate(bodies, start=1):
        for axis, letter in enumerate("xyz"):
            yield f"inertia/{body}/{letter}", "body_inertia", (i, axis)
    for dof, joint in enumerate(model.dof_jntid):
        yield f"damping/{model.joint(joint).name}", "dof_damping", (dof,)
    for i in range(model.ngeom):
        for axis, way in enumerate(("slide", "spin", "roll")):
            yield f"friction/{model.geom(i).name}/{way}", "geom_friction", (i, axis)


def sample_multipliers(
    rng: np.random.Generator, names: tuple[str, ...], log_scale_limit: float
) -> dict[str, float]:
    """Draw a multiplier ``base ** uniform(-limit, limit)`` for each of ``names``.

    The base is 1.5, and 1.3 for damping, as in the environments of ProMP (Rothfuss et al. 2019,
    https://arxiv.org/abs/1810.06784), rand_param_envs.
    """
    bases = np.array([1.3 if name.startswith("damping/") else 1.5 for name in names])
    drawn = bases ** rng.uniform(-log_scale_limit, log_scale_limit, size=len(names))
    return dict(zip(names, drawn.tolist(), strict=True))
