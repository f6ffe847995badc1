"""The NetworkPolicies let through what the pods need, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.kubernetes import BUILT, KUBECTL, build, build_one, pods, ray_cluster
from tests.cluster.network_rules import Endpoint, reaches

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def policies() -> list[dict[str, Any]]:
    found = [each for folder in ("common", "redis", "serve") for each in build(folder)]
    return [each for each in found if each["kind"] == "NetworkPolicy"]


def endpoint(name: str) -> Endpoint:
    """Return a pod of the manifests by ``folder role``, or one of the others below."""
    if name in OTHERS:
        return OTHERS[name]
    folder, _, role = name.partition(" ")
    (found,) = (pod for pod in pods(folder) if str(pod).endswith(role))
    return Endpoint(found.labels)


OTHERS = {
    "stranger": Endpoint({"app": "notebook"}),
    "stranger elsewhere": Endpoint({"app": "notebook"}, "default"),
    "operator": Endpoint({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system"),
    "prometheus": Endpoint({"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    "bucket": Endpoint(address="198.51.100.7"),
    "metadata service": Endpoint(address="169.254.169.254"),
    "DNS": Endpoint({"k8s-app": "kube-dns"}, "kube-system"),
    "redis cleanup": Endpoint(
        {
            "app.kubernetes.io/part-of": "maml-ray",
            "app.kubernetes.io/component": "serving",
            "ray.io/node-type": "redis-cleanup",
        }
    ),
}
HEAD, ROLLOUTS, LEARNER = "raycluster head", "raycluster rollouts", "raycluster learner"
SERVE_HEAD, REPLICAS = "rayservice head", "rayservice replicas"
GCS, NODE, DASHBOARD, CLIENT, AGENT, WORKER, SERVE = 6379, 6380, 8265, 10001, 52365, 15000, 8000

ALLOWED = [
    (ROLLOUTS, HEAD, GCS),
    (ROLLOUTS, HEAD, WORKER),
    (HEAD, ROLLOUTS, NODE),
    (HEAD, LEARNER, AGENT),
    (ROLLOUTS, LEARNER, WORKER),
    ("rayjob submitter", HEAD, DASHBOARD),
    ("operator", HEAD, DASHBOARD),
    ("operator", SERVE_HEAD, DASHBOARD),
    ("operator", REPLICAS, SERVE),
    ("stranger", REPLICAS, SERVE),
    ("stranger", "serve Deployment", SERVE),
    ("prometheus", ROLLOUTS, 8080),
    ("prometheus", HEAD, 44217),
    ("prometheus", HEAD, 44227),
    ("prometheus", REPLICAS, 8080),
    ("prometheus", "serve Deployment", SERVE),
    (SERVE_HEAD, REPLICAS, WORKER),
    (REPLICAS, SERVE_HEAD, GCS),
    (SERVE_HEAD, "redis StatefulSet", 6379),
    ("redis cleanup", "redis StatefulSet", 6379),
    (HEAD, "bucket", 443),
    ("serve Deployment", "bucket", 443),
    (HEAD, "DNS", 53),
]
REFUSED = [
    ("stranger", HEAD, DASHBOARD),
    ("stranger", HEAD, GCS),
    ("stranger", HEAD, CLIENT),
    ("stranger", ROLLOUTS, 8080),  # metrics ask for no token
    ("stranger", REPLICAS, DASHBOARD),
    ("stranger", "redis StatefulSet", 6379),
    ("stranger elsewhere", "serve Deployment", SERVE),
    ("stranger elsewhere", REPLICAS, SERVE),
    ("rayjob submitter", HEAD, GCS),
    ("rayjob submitter", REPLICAS, SERVE + 1),
    ("operator", HEAD, GCS),
    ("prometheus", HEAD, DASHBOARD),
    (REPLICAS, HEAD, GCS),  # what is reached from outside does not reach what trains
    ("serve Deployment", HEAD, DASHBOARD),
    (ROLLOUTS, SERVE_HEAD, DASHBOARD),
    (REPLICAS, "redis StatefulSet", 6379),
    (HEAD, "redis StatefulSet", 6379),
    (ROLLOUTS, "bucket", 80),
    (ROLLOUTS, "metadata service", 80),
    (ROLLOUTS, "metadata service", 443),
    (ROLLOUTS, "stranger", 443),
]


@pytest.mark.parametrize(("source", "target", "port"), ALLOWED)
def test_what_is_needed_is_let_through(source: str, target: str, port: int) -> None:
    assert reaches(policies(), endpoint(source), endpoint(target), port)


@pytest.mark.parametrize(("source", "target", "port"), REFUSED)
def test_nothing_else_is(source: str, target: str, port: int) -> None:
    assert not reaches(policies(), endpoint(source), endpoint(target), port)


def test_every_rule_is_needed() -> None:
    """Without any one rule, something of the list above is refused."""
    connections = [(endpoint(a), endpoint(b), port) for a, b, port in ALLOWED]
    for index, policy in enumerate(policies()):
        for direction in ("ingress", "egress"):
            for rule in range(len(policy["spec"].get(direction, ()))):
                changed = policies()
                del changed[index]["spec"][direction][rule]
                name = (policy["metadata"]["name"], direction, rule)
                assert not all(reaches(changed, *each) for each in connections), name


@pytest.mark.parametrize("folder", BUILT)
def test_every_pod_is_protected(folder: str) -> None:
    """A pod that no policy selects would be reached, and would reach anything."""
    for pod in pods(folder):
        there = Endpoint(pod.labels)
        assert not reaches(policies(), OTHERS["stranger elsewhere"], there, 22)
        assert not reaches(policies(), there, OTHERS["bucket"], 22)


@pytest.mark.parametrize(
    ("folder", "kind"), [("raycluster", "RayCluster"), ("rayservice", "RayService")]
)
def test_the_ports_of_rays_nodes_are_fixed(folder: str, kind: str) -> None:
    """A port that Ray draws is in no policy."""
    cluster = ray_cluster(build_one(folder, kind))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        parameters = group["rayStartParams"]
        named = {key: int(value) for key, value in parameters.items() if key.endswith("-port")}
        assert len(named) == 8
        assert (named.pop("min-worker-port"), named.pop("max-worker-port")) == (10002, 19999)
        assert len(set(named.values())) == len(named)
        head, nodes = (endpoint(f"{folder} {name}") for name in ("head", last_group(folder)))
        assert named.pop("metrics-export-port") == 8080
        for port in (*named.values(), 10002, 19999):
            assert reaches(policies(), nodes, head, port)
            assert reaches(policies(), head, nodes, port)


def last_group(folder: str) -> str:
    return {"raycluster": "rollouts", "rayservice": "replicas"}[folder]
