"""Define a preset, and how it is put together from parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Data = Mapping[str, Mapping[str, Any]]
"""Values of settings by section and key."""


@dataclass(frozen=True)
class Preset:
    """Named settings.

    Attributes:
        description: what it trains, or whose experiment it is.
        duration: of a run, roughly, on 2 CPUs.
        settings: sections of settings that differ from the defaults.
    """

    description: str
    duration: str
    settings: Data


def merged(*parts: Data) -> Data:
    """Return the parts merged key by key; later parts win."""
    result: dict[str, dict[str, Any]] = {}
    for part in parts:
        for section, values in part.items():
            result.setdefault(section, {}).update(values)
    return result


def named(name: str, description: str, duration: str, *parts: Data) -> tuple[str, Preset]:
    """Return a preset whose runs have its name."""
    return name, Preset(description, duration, merged(*parts, {"run": {"name": name}}))
