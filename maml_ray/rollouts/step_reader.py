"""Read final observations and infos from what a step of a vector environment returns.

Both depend on its autoreset mode (https://farama.org/Vector-Autoreset-Mode). In ``SAME_STEP`` mode
the step that ends an episode returns the next episode's first observation and infos; those of the
end are in ``infos["final_obs"]`` and ``infos["final_info"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from maml_ray.common.errors import UserError

Bool = NDArray[np.bool_]
Infos = Mapping[str, Any]

_FINAL_OBSERVATIONS = ("final_obs", "final_observation")  # the second before Gymnasium 1.1


class InfoNotANumber(UserError):
    """An entry of ``info`` that a metric is made of is not a number."""


@dataclass(frozen=True)
class Column:
    """One entry of the infos of K environments.

    Attributes:
        values: (K,) float64.
        reported: (K,) which environments report it in this step.
    """

    values: NDArray[np.float64]
    reported: Bool


def autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode | None:
    """Return the autoreset mode that the metadata of ``env`` give; None if they give none."""
    try:
        return AutoresetMode((env.metadata or {}).get("autoreset_mode"))
    except ValueError:
        return None


def final_observations(
    observations: Any, infos: Infos, ending: Bool, mode: AutoresetMode | None
) -> NDArray[Any]:
    """Return the last observations (n, D) of the n episodes that end in a step.

    Args:
        observations: (K, D) as the step returned them.
        infos: as the step returned them.
        ending: (K,) which environments' episodes end.
        mode: autoreset mode; None if unknown, which is ``NEXT_STEP`` unless the infos contain
            final observations.

    Raises:
        UserError: the mode is ``SAME_STEP`` and the infos do not contain them.
    """
    if mode in (None, AutoresetMode.SAME_STEP):
        key = next((key for key in _FINAL_OBSERVATIONS if key in infos), None)
        rows = [] if key is None else [infos[key][i] for i in np.flatnonzero(ending)]
        if rows and all(row is not None for row in rows):
            return np.asarray([np.asarray(row) for row in rows])
        if mode is AutoresetMode.SAME_STEP:
            raise UserError(
                "make_vector_env returns a batch that resets episodes within their last step "
                "(AutoresetMode.SAME_STEP) without the last observations in infos['final_obs']: "
                "use AutoresetMode.NEXT_STEP or DISABLED, or let the batch fill in final_obs "
                "(compute_final_obs=True in Isaac Lab)"
            )
    return np.asarray(observations)[ending]


def read_info(infos: Infos, name: str, ending: Bool, mode: AutoresetMode | None) -> Column | None:
    """Return ``info[name]`` of K environments; None if none reports it.

    What is None, NaN or infinite counts as not reported.

    Args:
        infos: as a step returned them.
        name: of the entry.
        ending: (K,) which environments' episodes end in this step.
        mode: autoreset mode.

    Raises:
        InfoNotANumber: a value is neither a number nor an array or a list of one number.
    """
    column = _column(infos, name, len(ending))
    if mode is not AutoresetMode.SAME_STEP or not ending.any():
        return column
    final = infos.get("final_info")
    at_end = _column(_as_batch(final, name), name, len(ending)) if final is not None else None
    none = Column(np.zeros(len(ending)), np.zeros(len(ending), np.bool_))
    column, at_end = column or none, at_end or none
    return Column(
        np.where(ending, at_end.values, column.values),
        np.where(ending, at_end.reported, column.reported),
    )


def _as_batch(infos: Any, name: str) -> Infos:
    """Convert infos as an array of dictionaries, as before Gymnasium 1.0, to one dictionary."""
    if isinstance(infos, Mapping):
        return infos
    return {name: [info.get(name) if isinstance(info, Mapping) else None for info in infos]}


def _column(infos: Infos, name: str, count: int) -> Column | None:
    if name not in infos:
        return None
    entry, mask = infos[name], infos.get(f"_{name}")
    reported = np.ones(count, np.bool_) if mask is None else np.array(mask, np.bool_)
    if isinstance(entry, np.ndarray) and entry.dtype.kind in "fiub" and entry.size == count:
        values = entry.reshape(count).astype(np.float64)
    else:
        values = np.full(count, np.nan)
        for i in np.flatnonzero(reported):
            values[i] = _number(entry[i], name)
    return Column(values, reported & np.isfinite(values))


def _number(value: Any, name: str) -> float:
    if value is None:
        return np.nan
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise InfoNotANumber(
            f"info[{name!r}] is {' '.join(repr(value).split()):.60}: task.info_metrics takes "
            "entries of info that are single numbers"
        )
    return float(array.reshape(())[()])
