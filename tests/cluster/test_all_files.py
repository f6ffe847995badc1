"""Every file of cluster/ has a test that validates it."""

from __future__ import annotations

from tests.cluster.files import CLUSTER

TESTED_HERE = {
    "README.md": "test_commands",
    "aws.yaml": "test_ray_up",
    "gcp.yaml": "test_ray_up",
    "on-premises.yaml": "test_ray_up",
    "kubernetes/raycluster.yaml": "test_kubernetes",
    "kubernetes/rayjob.yaml": "test_kubernetes",
    "kubernetes/rayservice.yaml": "test_kubernetes",
    "kubernetes/runs.yaml": "test_kubernetes",
    "Dockerfile": "test_dockerfile",
    "local.sh": "test_local",
}
TESTED_ELSEWHERE = ("grafana/", "prometheus/", "serve.yaml", "runtime-env.yaml")
"""Validated by the tests of metrics, serving and jobs."""


def test_every_file_is_validated_by_a_test() -> None:
    files = {
        str(path.relative_to(CLUSTER))
        for path in CLUSTER.rglob("*")
        if path.is_file() and not str(path.relative_to(CLUSTER)).startswith(TESTED_ELSEWHERE)
    }
    assert files == set(TESTED_HERE)
