"""The image's locks have the pinned versions, all that the package needs, and a hash for each."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path for path in (ROOT / "cluster" / "locks").iterdir()}
CUDA = re.compile(r"(cuda|nvidia)-.*|triton")
EXTRAS = {"s3", "serve"}  # of the image
PLATFORM = {
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "python_version": "3.11",
    "python_full_version": "3.11.16",
}


def read_lock(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package in a lock."""
    text = LOCKS[name].read_text(encoding="utf-8").replace("\\\n", " ")
    locked = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        pin, *hashes = line.split()
        package, version = pin.split("==")
        assert package not in locked
        locked[package] = (version, hashes)
    return locked


def constraints() -> dict[str, Version]:
    """Return the pinned versions by normalized name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def dependencies(package: str, extras: set[str], machine: str) -> set[str]:
    """Return all that ``package`` needs on Linux, by the metadata of what is installed."""
    found: set[tuple[str, str]] = set()
    todo = [(package, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            environment = {**PLATFORM, "platform_machine": machine, "extra": extra}
            if needed.marker is None or needed.marker.evaluate(environment):
                todo += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
    return {name for name, _ in found} - {package}


def test_there_is_a_lock_for_each_image_and_for_what_builds_the_wheel() -> None:
    assert set(LOCKS) == {"base", "cpu", "gpu", "build"}


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_versions_are_those_of_the_constraints(name: str) -> None:
    pins = constraints()
    for package, (version, _) in read_lock(name).items():
        if name == "gpu" and CUDA.fullmatch(package):
            assert package not in pins  # PyTorch's CUDA build pins them itself
        else:
            assert Version(version).public == str(pins[package]), f"{package}: run 'make lock'"


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_every_package_has_hashes(name: str) -> None:
    for package, (_, hashes) in read_lock(name).items():
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), package
        assert len(hashes) == len(set(hashes))


def test_each_device_has_pytorch_and_cuda_is_only_for_gpus() -> None:
    base, cpu, gpu = read_lock("base"), read_lock("cpu"), read_lock("gpu")
    assert set(cpu) == {"torch"}
    assert Version(cpu["torch"][0]).local == "cpu"
    assert len(cpu["torch"][1]) >= 2  # x86_64 and aarch64
    assert {package for package in gpu if not CUDA.fullmatch(package)} == {"torch"}
    assert Version(gpu["torch"][0]).local is None
    assert not set(base) & set(gpu)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_locks_are_complete_and_have_nothing_else(machine: str) -> None:
    pins = constraints()
    if any(Version(metadata.version(name)).public != str(pins[name]) for name in read_lock("base")):
        pytest.skip("other versions than the pinned ones are installed, with other dependencies")
    needed = dependencies("maml-ray", EXTRAS, machine)
    base = {name for name in needed if not CUDA.fullmatch(name)} - {"torch"}
    assert set(read_lock("base")) == base, "run 'make lock'"
    # A build of PyTorch without CUDA does not name CUDA's packages.
    assert {name for name in needed if CUDA.fullmatch(name)} <= set(read_lock("gpu"))


def test_what_builds_the_wheel_is_locked() -> None:
    backend = re.findall(r'^requires = \["(\w+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    needed = {name for each in backend for name in {each, *dependencies(each, set(), "x86_64")}}
    assert set(read_lock("build")) == needed
