"""Every file of cluster/ has a test that validates it."""

from __future__ import annotations

from typing import Any

from tests.cluster.files import CLUSTER, load
from tests.cluster.kubernetes import BUILT, KUBERNETES

TESTED_HERE = {
    "README.md": "test_commands",
    "aws.yaml": "test_ray_up",
    "gcp.yaml": "test_ray_up",
    "on-premises.yaml": "test_ray_up",
    "Dockerfile": "test_dockerfile",
    "local.sh": "test_local",
}
TESTED_ELSEWHERE = (
    "grafana/",
    "kubernetes/",
    "locks/",
    "prometheus/",
    "serve.yaml",
    "runtime-env.yaml",
)
"""Validated by the tests of metrics, packaging, serving and jobs; kubernetes/ below."""


def test_every_file_is_validated_by_a_test() -> None:
    files = {
        str(path.relative_to(CLUSTER))
        for path in CLUSTER.rglob("*")
        if path.is_file() and not str(path.relative_to(CLUSTER)).startswith(TESTED_ELSEWHERE)
    }
    assert files == set(TESTED_HERE)


def test_every_manifest_is_built_by_a_folder_that_is_tested() -> None:
    built = {KUBERNETES / folder / "kustomization.yaml" for folder in BUILT}
    kustomizations = {path: load(path) for path in KUBERNETES.rglob("kustomization.yaml")}
    components = {path for path, found in kustomizations.items() if found["kind"] == "Component"}
    assert set(kustomizations) == built | components
    used = {
        (path.parent / name).resolve()
        for path, found in kustomizations.items()
        for name in parts(found)
    }
    files = {path for path in KUBERNETES.rglob("*") if path.is_file()}
    assert files == set(kustomizations) | {path for path in used if path.is_file()}
    assert components == {path / "kustomization.yaml" for path in used if path.is_dir()} - built


def parts(kustomization: dict[str, Any]) -> list[str]:
    return [*kustomization.get("resources", ()), *kustomization.get("components", ())]
