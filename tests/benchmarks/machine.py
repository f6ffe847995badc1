"""On what was measured: the machine, the versions, and how busy it was before."""

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
    """What a time depends on, in words; to be asked before anything is measured."""
    return {
        "machine": f"{_model()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "frequency governor": _governor(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of all that takes part."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _model() -> str:
    try:
        told = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        told = None
    return told.group(1) if told else platform.processor() or "unknown CPU"


def _governor() -> str:
    try:
        told = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text()
    except OSError:  # as in most virtual machines
        return "not told"
    return told.strip()
