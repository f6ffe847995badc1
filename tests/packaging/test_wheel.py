"""The wheel has what the program reads and nothing else; bounds and pins agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel of a source distribution of this repository, as it is uploaded."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def files_of(folder: Path) -> set[str]:
    """Return the paths of all files, relative to the repository, without compiled ones."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {
        path.relative_to(ROOT).as_posix()
        for path in found
        if "__pycache__" not in path.parts and not path.name.endswith((".nbi", ".nbc"))
    }


def test_the_wheel_has_the_package_and_the_manifests_and_no_tests(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    manifests = {f"maml_ray/{name}" for name in files_of(ROOT / "cluster")}
    assert names == files_of(ROOT / "maml_ray") | manifests
    assert names >= {
        "maml_ray/py.typed",
        "maml_ray/cluster/kubernetes/rayjob/rayjob.yaml",
        "maml_ray/config/settings.schema.json",
        "maml_ray/docs/index.md",
        "maml_ray/reporting/report.html.j2",
    }


def test_the_metadata_name_the_command_and_the_readme(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "MIT"
    commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "maml-ray = maml_ray.cli.main:main" in commands


def requirements() -> list[Requirement]:
    """Return all requirements of the package and of its extras but the package itself."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [found for found in map(Requirement, lines) if found.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_pinned_version_is_within_the_bounds(requirement: Requirement) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    )
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_what_a_run_needs_has_a_lower_bound() -> None:
    operators = {
        Requirement(line).name: {each.operator for each in Requirement(line).specifier}
        for line in PROJECT["dependencies"]
    }
    assert [name for name, found in operators.items() if ">=" not in found] == []


def test_the_versions_of_python_are_those_that_the_workflow_tests() -> None:
    classifiers = " ".join(PROJECT["classifiers"])
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    (tested,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", tested) == re.findall(r"Python :: (3\.\d+)", classifiers)
    assert PROJECT["requires-python"] == f">={tested.split(',')[0].strip()[1:-1]}"
