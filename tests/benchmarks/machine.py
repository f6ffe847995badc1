"""Describe the machine, its load before the benchmark, and the versions."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "maml-ray",
    "mujoco",
    "gymnasium",
    "numpy",
    "scipy",
    "numba",
    "torch",
    "ray",
    "envpool",
    "stable-baselines3",
    "torchrl",
)


def machine() -> dict[str, str]:
    """Return what times depend on; call it before anything is measured."""
    return {
        "machine": f"{_model()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "frequency governor": _governor(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _model() -> str:
    try:
        model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        model = None
    return model.group(1) if model else platform.processor() or "unknown CPU"


def _governor() -> str:
    try:
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text()
    except OSError:  # as in most virtual machines
        return "unknown"
    return governor.strip()
