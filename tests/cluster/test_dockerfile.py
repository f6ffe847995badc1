"""The image: its base is our Ray and Python, what it copies is there, and hadolint has no word."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from tests.cluster.files import CLUSTER, ROOT, pin, python_tag

DOCKERFILE = CLUSTER / "Dockerfile"


def instructions(name: str) -> list[str]:
    """The values of all instructions of a kind, in order."""
    parser = DockerfileParser(fileobj=io.BytesIO(DOCKERFILE.read_bytes()))
    return [each["value"] for each in parser.structure if each["instruction"] == name]


def sources() -> list[str]:
    """What the image copies out of the repository."""
    copies = [re.sub(r"--\S+ ", "", value).split()[:-1] for value in instructions("COPY")]
    return [source for copy in copies for source in copy]


def test_the_base_has_our_ray_and_python() -> None:
    first, *stages = instructions("FROM")
    assert first == f"rayproject/ray:{pin('ray')}-{python_tag()}-cpu AS base"
    assert stages == ["base AS device-cpu", "base AS device-gpu", "device-${DEVICE}"]
    assert instructions("ARG") == ["DEVICE=cpu"]  # the one argument


def test_what_is_copied_is_there_and_not_ignored() -> None:
    assert set(sources()) >= {"maml_ray", "pyproject.toml", "constraints.txt", "deploy.yaml"}
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in let_in
    assert let_in.index("*") < let_in.index("!maml_ray")
    for source in sources():
        assert (ROOT / source).exists()
        assert f"!{source}" in let_in
    # Nothing else goes to the builder: no token, no run, no environment.
    assert {line[1:] for line in let_in if line.startswith("!")} == set(sources())


def test_what_the_package_is_built_of_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    files |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert files <= set(sources())


def test_every_install_keeps_to_the_pins() -> None:
    installs = [run for run in instructions("RUN") if "pip install" in run]
    assert len(installs) == 4
    for run in installs:
        assert "--no-cache-dir" in run
        assert "-c constraints.txt" in run or "--no-deps" in run


def test_the_extras_are_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = set(project["project"]["optional-dependencies"])
    (named,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", "\n".join(instructions("RUN")))
    assert set(named.split(",")) <= there


def test_egl_is_there_and_nobody_is_root_in_the_end() -> None:
    (packages,) = (run for run in instructions("RUN") if "apt-get" in run)
    assert {"libegl1", "libgl1", "libgles2"} <= set(packages.split())
    assert "rm -rf /var/lib/apt/lists/*" in packages
    assert "MUJOCO_GL=egl" in instructions("ENV")
    assert instructions("USER")[-1] == "1000"  # by number, as runAsNonRoot wants it


@pytest.mark.parametrize(
    ("program", "path"), [("hadolint", DOCKERFILE), ("shellcheck", CLUSTER / "local.sh")]
)
def test_linters_have_no_word(program: str, path: Path) -> None:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed: its package has none for this platform")
    done = subprocess.run([found, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
