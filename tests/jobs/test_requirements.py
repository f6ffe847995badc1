"""What a job installs: the closure of our requirements, pinned, without Ray."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from maml_ray.common.errors import UserError
from maml_ray.jobs.requirements import dependency_closure, pinned_requirements

ROOT = Path(__file__).parents[2]


class Fake:
    def __init__(self, *requires: str) -> None:
        self.requires = list(requires)


INSTALLED = {
    "ours": Fake(
        "Alpha[fast]>=1", "ray[default]", "gone", 'old; python_version < "3"', 'x; extra == "s3"'
    ),
    "alpha": Fake("beta_pack", 'gamma; extra == "fast"', 'delta; extra == "slow"'),
    "beta-pack": Fake("alpha"),
    "gamma": Fake(),
    "delta": Fake(),
    "x": Fake("setuptools"),
    "ray": Fake("only-ray-needs-it"),
    "only-ray-needs-it": Fake(),
    "setuptools": Fake(),
}


def find(name: str) -> Any:
    if name not in INSTALLED:
        raise metadata.PackageNotFoundError(name)
    return INSTALLED[name]


def test_the_closure_follows_extras_and_markers_and_leaves_ray_and_its_own_out() -> None:
    assert dependency_closure("ours", (), find) == {"alpha", "beta-pack", "gamma"}
    assert dependency_closure("ours", ("s3",), find) == {"alpha", "beta-pack", "gamma", "x"}


def test_what_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", find)
    with pytest.raises(UserError, match=r"not installed here.*--no-install"):
        pinned_requirements()


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==([\w.!-]+)", line.strip()) for line in lines)
    return {re.sub("[-_.]+", "-", one[1]).lower(): one[2] for one in found if one}


def test_the_repository_s_own_environment_of_a_job_is_that_of_its_constraints() -> None:
    environment = yaml.safe_load((ROOT / "cluster" / "runtime-env.yaml").read_text())
    package, *packages = environment["pip"]
    assert package == "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    listed = pins(packages)
    assert len(listed) == len(packages)
    assert listed == {name: constraints[name] for name in closure_here()}
    assert "ray" not in listed
    assert listed == pins(pinned_requirements())


def closure_here() -> set[str]:
    return dependency_closure("maml-ray", ("s3",), metadata.distribution)
