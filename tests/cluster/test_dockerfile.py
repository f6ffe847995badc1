"""The image has our Ray and Python, the files it copies exist, and hadolint finds nothing."""

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
    """Return the values of all instructions of a kind, in order."""
    parser = DockerfileParser(fileobj=io.BytesIO(DOCKERFILE.read_bytes()))
    return [each["value"] for each in parser.structure if each["instruction"] == name]


def sources() -> list[str]:
    """Return the paths that the image copies from the repository."""
    copies = [re.sub(r"--\S+ ", "", value).split()[:-1] for value in instructions("COPY")]
    return [source for copy in copies for source in copy]


def test_the_base_has_our_ray_and_python() -> None:
    first, *stages = instructions("FROM")
    assert first == f"rayproject/ray:{pin('ray')}-{python_tag()}-cpu AS base"
    assert stages == ["base AS device-cpu", "base AS device-gpu", "device-${DEVICE}"]
    assert instructions("ARG") == ["DEVICE=cpu"]  # the one argument


def test_copied_files_exist_and_are_not_ignored() -> None:
    assert set(sources()) >= {"maml_ray", "pyproject.toml", "constraints.txt", "deploy.yaml"}
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in dockerignore
    assert dockerignore.index("*") < dockerignore.index("!maml_ray")
    for source in sources():
        assert (ROOT / source).exists()
        assert f"!{source}" in dockerignore
    # Nothing else goes to the builder: no token, no run, no environment.
    assert {line[1:] for line in dockerignore if line.startswith("!")} == set(sources())
    last_included = max(dockerignore.index(f"!{source}") for source in sources())
    for secret in ("**/token", "**/.env", "**/.env.*"):  # also in the folders named above
        assert dockerignore.index(secret) > last_included


def test_the_files_of_the_package_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    files |= {*wheel["packages"], *wheel["force-include"]}
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


def test_egl_is_installed_and_the_user_is_not_root() -> None:
    (packages,) = (run for run in instructions("RUN") if "apt-get" in run)
    assert {"libegl1", "libgl1", "libgles2"} <= set(packages.split())
    assert "rm -rf /var/lib/apt/lists/*" in packages
    assert "MUJOCO_GL=egl" in instructions("ENV")
    assert instructions("USER")[-1] == "1000"  # by number, as runAsNonRoot wants it


@pytest.mark.parametrize(
    ("program", "path"), [("hadolint", DOCKERFILE), ("shellcheck", CLUSTER / "local.sh")]
)
def test_linters_find_nothing(program: str, path: Path) -> None:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed: its package has none for this platform")
    done = subprocess.run([found, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
