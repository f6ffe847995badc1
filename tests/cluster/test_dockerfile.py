"""The image is named by its content, has no tools, and hadolint finds nothing."""

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


def sources() -> set[str]:
    """Return the paths that the image copies from the repository."""
    copies = [value for value in instructions("COPY") if "--from" not in value]
    return {source for copy in copies for source in copy.split()[:-1]}


def stages() -> dict[str, str]:
    """Return what each stage of the build begins with, by its name."""
    found = [value.split(" AS ") for value in instructions("FROM")]
    return {name[0] if name else "": source for source, *name in found}


def test_stages_begin_with_one_base_named_by_its_digest() -> None:
    found = stages()
    version = python_tag().removeprefix("py3")
    base = found.pop("base")
    assert re.fullmatch(rf"python:3\.{version}-slim-bookworm@sha256:[0-9a-f]{{64}}", base)
    assert found == {
        "builder-cpu": "base",
        "builder-gpu": "base",
        "builder": "builder-${DEVICE}",
        "runtime-cpu": "base",
        "runtime-gpu": "base",
        "": "runtime-${DEVICE}",
    }
    assert instructions("ARG") == ["DEVICE=cpu", "DEVICE"]  # the one argument


def test_names_of_the_image_have_the_locked_ray() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8") + (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"maml-ray:([\d.]+)-", text)) == {pin("ray")}


def test_copied_files_exist_and_are_not_ignored() -> None:
    copied = sources()
    assert copied >= {"maml_ray", "pyproject.toml", "cluster/locks/base.txt", "deploy.yaml"}
    assert all((ROOT / source).exists() for source in copied)
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    included = {line[1:] for line in dockerignore if line.startswith("!")}
    assert dockerignore.index("*") < dockerignore.index("!maml_ray")
    # Nothing else goes to the builder: no token, no run, no environment.
    assert included == {source.split("/")[0] for source in copied}


def test_the_files_of_the_package_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    files |= {*wheel["packages"], *wheel["force-include"]}
    assert files <= sources()


def test_every_package_is_a_wheel_of_a_lock() -> None:
    text = "\n".join(instructions("RUN"))
    installs = [each for each in re.split(r"&&|\n", text) if "pip install" in each]
    own = [each for each in installs if each.split()[-1] == "."]
    assert len(own) == 1
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(own[0].split())
    locks = set()
    for install in installs:
        if install in own:
            continue
        assert {"--require-hashes", "--no-deps", "--only-binary :all:"} <= {
            *install.split(),
            *re.findall(r"--only-binary \S+", install),
        }
        locks.add(install.split()[-1].strip('"'))
    assert locks == {f"cluster/locks/{name}.txt" for name in ("$DEVICE", "base", "build")}


def test_the_end_has_what_runs_need_and_no_tools() -> None:
    final = DOCKERFILE.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert {"libegl1", "libgl1", "libgles2", "wget"} <= set(final.split())
    assert "rm -rf /var/lib/apt/lists/*" in final
    assert "pip uninstall" in final
    assert "pip install" not in final
    assert "COPY --from=builder /install /usr/local" in final
    assert "maml_ray.runs.precompile" in final
    assert "MUJOCO_GL=egl" in final
    assert instructions("USER") == ["1000:100"]  # by number, as runAsNonRoot wants it


@pytest.mark.parametrize(
    ("program", "path"), [("hadolint", DOCKERFILE), ("shellcheck", CLUSTER / "local.sh")]
)
def test_linters_find_nothing(program: str, path: Path) -> None:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed: its package has none for this platform")
    done = subprocess.run([found, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
