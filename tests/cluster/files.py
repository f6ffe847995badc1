"""Read the files of cluster/, and the versions that they must agree with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def pin(package: str) -> str:
    """Return the version of ``package`` in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)$", text, re.M)
    return str(version)


def python_tag() -> str:
    """Return the Python version of the type checks as in an image's tag: ``py311``."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (major, minor) = re.findall(r'^python_version = "(\d+)\.(\d+)"$', text, re.M)[0]
    return f"py{major}{minor}"


def load(path: Path) -> Any:
    """Return the only document of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
