"""Mathematics for kernels, against numpy's in twice the precision; and their cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import maml_ray
from maml_ray.kernels.jit import cache_directory, jit, tanh


@jit
def tanh_of(values: NDArray[Any], into: NDArray[Any]) -> None:
    for i in range(values.size):
        into[i] = tanh(values[i])


def spread(size: int) -> NDArray[np.float32]:
    """Numbers of either sign and of all sizes that matter, and where the tangent saturates."""
    small = np.logspace(-38, 0, size)
    large = np.linspace(-12.0, 12.0, size)
    return np.concatenate([small, -small, large]).astype(np.float32)


def test_tanh_of_float32_is_within_five_units_in_the_last_place() -> None:
    values = spread(200_001)
    actual = np.empty_like(values)
    tanh_of(values, actual)
    exact = np.tanh(values.astype(np.float64))
    error_ulp = np.abs(actual - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert error_ulp.max() < 5.0
    assert np.abs(actual).max() == 1.0  # its slope, 1 - tanh^2, is never below zero


@given(st.floats(width=32), st.integers(0, 40))
def test_tanh_of_one_number_is_that_among_many(value: float, index: int) -> None:
    # What a processor does to many at once, and what it does to the rest of a row, are one.
    values = np.zeros(41, np.float32)
    values[index] = value
    alone, among = np.empty(1, np.float32), np.empty_like(values)
    tanh_of(values[index : index + 1], alone)
    tanh_of(values, among)
    np.testing.assert_array_equal(among[index], alone[0])
    np.testing.assert_array_equal(np.delete(among, index), 0.0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tanh_keeps_what_is_no_number(kind: type[np.floating[Any]]) -> None:
    actual = np.empty(4, kind)
    tanh_of(np.array([np.nan, np.inf, -np.inf, -0.0], kind), actual)
    np.testing.assert_array_equal(actual, [np.nan, 1.0, -1.0, -0.0])


def test_tanh_of_float64_is_the_c_librarys() -> None:
    values = np.linspace(-3.0, 3.0, 1001)
    actual = np.empty_like(values)
    tanh_of(values, actual)
    np.testing.assert_allclose(actual, np.tanh(values), rtol=1e-15)


def test_kernels_live_where_changes_are_noticed() -> None:
    package = Path(maml_ray.__file__).parent
    users = [
        source
        for source in package.rglob("*.py")
        if re.search(r"maml_ray\.kernels\.jit import .*\bjit\b", source.read_text())
    ]
    assert users
    assert all(
        source.parent.name == "kernels" or source.name.endswith("_kernel.py") for source in users
    )


def test_machine_code_of_other_sources_is_not_used(tmp_path: Path) -> None:
    for folder in ("kernels", "envs"):
        (tmp_path / folder).mkdir()
    for name in ("kernels/jit.py", "kernels/outer.py", "envs/inner_kernel.py"):
        (tmp_path / name).write_text("as it was")
    before = cache_directory(tmp_path)
    assert before is not None
    assert cache_directory(tmp_path) == before
    for name in ("kernels/outer.py", "envs/inner_kernel.py"):
        (tmp_path / name).write_text("changed")
        assert cache_directory(tmp_path) != before
        (tmp_path / name).write_text("as it was")
    assert Path(before).is_dir()


@pytest.mark.parametrize("writable", ["the user's cache", "nothing"])
def test_where_the_package_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: str
) -> None:
    # By files where folders would have to be: a superuser may write to any folder.
    package, cache = tmp_path / "package", tmp_path / "cache"
    package.mkdir()
    for name in ("jit.py", "__pycache__"):
        (package / name).write_text("a file")
    if writable == "nothing":
        cache.write_text("a file, too")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    directory = cache_directory(package)
    if writable == "nothing":
        assert directory is None
    else:
        assert directory is not None
        assert Path(directory).parent == cache / "maml_ray"


def test_code_compiled_in_a_read_only_image_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, cache = tmp_path / "package", tmp_path / "cache"
    package.mkdir()
    built = cache_directory(package)
    assert built is not None
    assert Path(built).is_relative_to(package)
    (Path(built) / "kernel.nbc").write_text("machine code")
    # A superuser may write to any folder: the answer is that of a read-only file system.
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(package))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    directory = cache_directory(package)
    assert directory is not None
    assert Path(directory).is_relative_to(cache)
    assert (Path(directory) / "kernel.nbc").read_text() == "machine code"
    # What was compiled since is not overwritten.
    (Path(directory) / "kernel.nbc").write_text("of this machine")
    assert cache_directory(package) == directory
    assert (Path(directory) / "kernel.nbc").read_text() == "of this machine"
    assert [path.name for path in Path(directory).parent.iterdir()] == [Path(directory).name]
