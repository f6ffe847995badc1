"""Look up the versions of all packages that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("torch", "ray", "gymnasium", "mujoco", "numpy", "scipy", "numba", "llvmlite")


def own_version() -> str:
    """Return the version of maml-ray."""
    try:
        return metadata.version("maml-ray")
    except metadata.PackageNotFoundError:  # a source tree on the path, as Ray uploads it
        return "0+source"


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages, by name."""
    return {
        "maml-ray": own_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }
