"""A MuJoCo model whose masses, inertias, damping and friction can be multiplied, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import mujoco
import numpy as np

from maml_ray.common.numbers import finite_floats
from maml_ray.config.error_messages import nearest

_KINDS = {
    "mass": "body_mass",
    "inertia": "body_inertia",
    "damping": "dof_damping",
    "friction": "geom_friction",
}


class _Element(NamedTuple):
    """One number of the model: its array's name, its place in it, what the model came with."""

    array: str
    place: tuple[int, ...]
    original: float


class Dynamics:
    """The numbers of ``model`` that can be multiplied, by name.

    ``mass/torso``, ``inertia/torso/x``, ``damping/thigh_joint``, ``friction/foot_geom/slide``
    (and ``spin``, ``roll``). Numbers that are zero, to which a multiplier does nothing, have no
    name.

    Args:
        model: as it was loaded; it is changed in place by :meth:`apply`.

    Attributes:
        multipliers: those that were last applied.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._originals = {name: getattr(model, name).copy() for name in _KINDS.values()}
        self._elements = {
            name: _Element(array, index, float(self._originals[array][index]))
            for name, array, index in _elements(model)
            if self._originals[array][index] != 0.0
        }
        self.multipliers: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, kind after kind, each in the model's order."""
        return tuple(self._elements)

    def check(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """``multipliers`` as floats.

        Raises:
            ValueError: a name is not known, or a multiplier is not a positive number.
        """
        for name in multipliers:
            if name not in self._elements:
                raise ValueError(
                    f"{name!r} is not among the dynamics{nearest(name, self._elements)} "
                    f"(there are: {self._summary()})"
                )
        values = finite_floats(multipliers)
        for name, value in values.items():
            if value <= 0.0:
                raise ValueError(f"the multiplier {name} must be above zero, got {value:g}")
        return values

    def apply(self, multipliers: Mapping[str, float]) -> None:
        """Make the model what it came as, times ``multipliers``; those left out are 1.

        Raises:
            ValueError: see :meth:`check`; the model is then as before.
        """
        values = self.check(multipliers)
        for array, original in self._originals.items():
            getattr(self._model, array)[:] = original
        for name, value in values.items():
            array, place, original = self._elements[name]
            getattr(self._model, array)[place] = original * value
        # The reference code leaves this out: constants derived from the masses, such as the
        # inverse weights that scale the solver's constraints, are then those of another model.
        mujoco.mj_setConst(self._model, self._scratch)
        self.multipliers = values

    def _summary(self) -> str:
        """What there is, a kind at a time."""
        parts: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        for name in self._elements:
            kind, owner = name.split("/")[:2]
            if owner not in parts[kind]:
                parts[kind].append(owner)
        axes = {"inertia": "/x|y|z", "friction": "/slide|spin|roll"}
        return ", ".join(
            f"{kind}/{'|'.join(owners)}{axes.get(kind, '')}" for kind, owners in parts.items()
        )


def _elements(model: mujoco.MjModel) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, array and index of every number that could have a multiplier."""
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


def sampled_multipliers(
    rng: np.random.Generator, names: tuple[str, ...], log_scale_limit: float
) -> dict[str, float]:
    """A multiplier for each of ``names``: ``base ** uniform(-limit, limit)``.

    The base is 1.5, and 1.3 for damping: Rothfuss et al. 2019, ProMP
    (https://arxiv.org/abs/1810.06784), whose environments are those of rand_param_envs.
    """
    bases = np.array([1.3 if name.startswith("damping/") else 1.5 for name in names])
    drawn = bases ** rng.uniform(-log_scale_limit, log_scale_limit, size=len(names))
    return dict(zip(names, drawn.tolist(), strict=True))
