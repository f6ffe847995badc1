"""Define the types of settings' values: numbers in a range, paths, names and addresses."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from maml_ray.common.locations import location_problem, path_problem
from maml_ray.config.error_messages import SettingsError
from maml_ray.config.right_form import right_form

Count = Annotated[int, Field(ge=1)]
Budget = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LogStd = Annotated[float, Field(ge=-20, le=5)]


def _as_pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"write {right_form('pair', value)}")
    return tuple(value)


def _as_path(value: str) -> str:
    if problem := path_problem(value):
        raise ValueError(problem)
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_location(value: str) -> str:
    if problem := location_problem(value):
        raise ValueError(problem)
    return value


LocalPath = Annotated[str, Field(min_length=1), AfterValidator(_as_path)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_as_location)]
"""A path or URL, as :mod:`maml_ray.common.locations` expands it on the machine that uses it."""


Range = Annotated[tuple[Finite, Finite], BeforeValidator(_as_pair)]


def _as_info_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w.:/ -]*", value):
        raise ValueError(
            "write the name of an entry of info: letters, digits, _ . : / - and spaces"
        )
    if value in _TAKEN_INFO_NAMES:
        raise ValueError(f"{value}_after is a metric already: give the entry another name in info")
    return value


_TAKEN_INFO_NAMES = ("return",)
InfoName = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_as_info_name)]
"""Name of an entry of info; its metrics are ``NAME_before`` and ``NAME_after``."""
InfoNames = Annotated[tuple[InfoName, ...], BeforeValidator(_as_tuple)]

T = TypeVar("T")
Option = Annotated[T, Strict()]
"""An option of a task distribution, as strict about types as a setting."""


def check_cluster_address(address: str, source: str) -> None:
    """Reject what is no address of a Ray cluster.

    Args:
        address: to be checked.
        source: the setting, option or variable that it comes from.

    Raises:
        SettingsError: it has another form.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal() and port.isascii() and int(port) < 2**16) or "/" in host:
        dashboard = (
            "; it looks like the dashboard's: that is for 'maml-ray submit' and 'doctor'"
            if address.startswith("http")
            else ""
        )
        raise SettingsError(
            f"{source} = {address!r:.80} is not of the form host:port, ray://host:port or "
            f"auto{dashboard}"
        )
