"""Versions of everything that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("torch", "ray", "gymnasium", "mujoco", "numpy", "scipy", "numba", "llvmlite")


def own_version() -> str:
    """This package's version."""
    try:
        return metadata.version("maml-ray")
    except metadata.PackageNotFoundError:  # a source tree on the path, as Ray uploads it
        return "0+source"


def versions() -> dict[str, str]:
    """Python, the machine, and the packages that results depend on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "maml-ray": own_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **found,
    }
