"""Ray's private attributes exist in the installed release; a moved one is named in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from maml_ray.common.errors import ResourceError
from maml_ray.runtime import ray_internals

INTERNALS = {
    name: value
    for name, value in vars(ray_internals).items()
    if isinstance(value, str) and value.startswith("ray._private.")
}


@pytest.mark.parametrize("path", INTERNALS.values(), ids=INTERNALS.keys())
def test_the_installed_ray_has_every_private_attribute(path: str) -> None:
    try:
        ray_internals.find_internal(path)
    except ResourceError as moved:
        pytest.fail(str(moved), pytrace=False)


@pytest.mark.parametrize(
    "path",
    [
        "ray._private.state.state.get_moved_nodes",
        "ray._private.worker.moved",
        "ray._private.moved.attribute",
        "ray.moved.attribute.of_it",
    ],
)
def test_a_moved_attribute_is_named_in_one_sentence(path: str) -> None:
    with pytest.raises(ResourceError, match=rf"^Ray {ray.__version__} has no {path}, .*install"):
        ray_internals.find_internal(path)


def test_private_api_of_ray_is_used_in_one_module() -> None:
    root = Path(ray_internals.__file__).parents[1]
    users = {p.name for p in root.rglob("*.py") if "ray._private" in p.read_text(encoding="utf-8")}
    assert users == {"ray_internals.py"}


def test_a_local_cluster_is_owned_and_drains_nothing(local_ray: None) -> None:
    assert ray_internals.owns_cluster()
    assert not ray_internals.is_ray_client()
    assert not ray_internals.get_draining_nodes()
    assert ray_internals.get_dashboard_url() is None  # started without one


def test_upload_paths_follow_ignore_files(tmp_path: Path) -> None:
    for name in ("kept.py", "ignored.bin", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".gitignore").write_text("*.bin\n")
    visited: list[Path] = []
    ray_internals.for_each_uploaded_path(tmp_path, visited.append)
    assert {p.name for p in visited if p.is_file()} == {"kept.py", ".gitignore"}
