"""KubeRay's operator accepts the manifests and reads all of them; each rule catches an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.kuberay_rules import ignored, refusals
from tests.cluster.kubernetes import BUILT, KUBECTL, build, build_one, ray_cluster

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

JOB, SERVICE, CLUSTER = (
    ("rayjob", "RayJob"),
    ("rayservice", "RayService"),
    ("raycluster", "RayCluster"),
)
NIGHTLY, STEPS = ("nightly", "RayCronJob"), ("incremental-upgrade", "RayService")


@pytest.mark.parametrize("folder", BUILT)
def test_the_operator_accepts_the_manifests_and_reads_all_of_them(folder: str) -> None:
    for manifest in build(folder):
        if manifest["apiVersion"] == "ray.io/v1":
            assert refusals(manifest) == []
            assert ignored(manifest) == []


def _head(manifest: Any) -> Any:
    return ray_cluster(manifest)["headGroupSpec"]


def _learner(manifest: Any) -> Any:
    return ray_cluster(manifest)["workerGroupSpecs"][0]


def _upgrade(manifest: Any) -> Any:
    return manifest["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]


def _variable(manifest: Any, name: str) -> object:
    environment = _head(manifest)["template"]["spec"]["containers"][0]["env"]
    return environment.append({"name": name, "value": "1"})


def _rules(manifest: Any, *rules: tuple[str, dict[str, Any]], shutdown: bool = False) -> None:
    spec = manifest["spec"]
    spec["shutdownAfterJobFinishes"] = shutdown
    found = [{"policy": policy, "condition": condition} for policy, condition in rules]
    spec["deletionStrategy"] = {"deletionRules": found}


SUCCESS = {"jobStatus": "SUCCEEDED"}
Change = Callable[[Any], object]
WRONG: list[tuple[tuple[str, str], str, Change]] = [
    (JOB, "more than 47", lambda found: found["metadata"].update(name="a" * 48)),
    (CLUSTER, "more than 53", lambda found: found["metadata"].update(name="a" * 54)),
    (JOB, "DNS-1035", lambda found: found["metadata"].update(name="1st")),
    (
        CLUSTER,
        "without a container",
        lambda found: _learner(found)["template"]["spec"].pop("containers"),
    ),
    (CLUSTER, "above maxReplicas", lambda found: _learner(found).update(minReplicas=2)),
    (
        CLUSTER,
        "needs minReplicas",
        lambda found: (
            found["spec"].pop("enableInTreeAutoscaling"),
            _learner(found).pop("minReplicas"),
        ),
    ),
    (CLUSTER, "cannot be suspended", lambda found: _learner(found).update(suspend=True)),
    (
        CLUSTER,
        "priority of a group needs",
        lambda found: (
            found["spec"]["autoscalerOptions"].pop("version"),
            _learner(found).update(priority=1),
        ),
    ),
    (
        CLUSTER,
        "restartPolicy",
        lambda found: _head(found)["template"]["spec"].update(restartPolicy="Always"),
    ),
    (CLUSTER, "resources both", lambda found: _head(found).update(resources={"cpu": "1"})),
    (
        CLUSTER,
        "rayStartParams.labels",
        lambda found: _head(found)["rayStartParams"].update(labels="a=b"),
    ),
    (
        SERVICE,
        "rayStartParams.redis-password",
        lambda found: _head(found)["rayStartParams"].update({"redis-password": "x"}),
    ),
    (SERVICE, "REDIS_PASSWORD of the head", lambda found: _variable(found, "REDIS_PASSWORD")),
    (SERVICE, "RAY_REDIS_ADDRESS of the head", lambda found: _variable(found, "RAY_REDIS_ADDRESS")),
    (SERVICE, "REDIS_USERNAME", lambda found: _variable(found, "REDIS_USERNAME")),
    (
        CLUSTER,
        "without gcsFaultToleranceOptions",
        lambda found: _variable(found, "RAY_REDIS_ADDRESS"),
    ),
    (
        SERVICE,
        "GCSFaultToleranceEmbeddedStorage",
        lambda found: ray_cluster(found)["gcsFaultToleranceOptions"].update(backend="rocksdb"),
    ),
    (
        SERVICE,
        "storage is for",
        lambda found: ray_cluster(found)["gcsFaultToleranceOptions"].update(storage={}),
    ),
    (
        CLUSTER,
        "beside autoscalerOptions.version",
        lambda found: _variable(found, "RAY_enable_autoscaler_v2"),
    ),
    (
        CLUSTER,
        "_v2 without autoscaling",
        lambda found: (
            found["spec"].pop("enableInTreeAutoscaling"),
            _variable(found, "RAY_enable_autoscaler_v2"),
        ),
    ),
    (
        CLUSTER,
        "is negative",
        lambda found: found["spec"]["autoscalerOptions"].update(idleTimeoutSeconds=-1),
    ),
    (CLUSTER, "RayClusterNetworkPolicy", lambda found: found["spec"].update(networkPolicy={})),
    (CLUSTER, "RayClusterMTLS", lambda found: found["spec"].update(tlsOptions={"enabled": True})),
    (CLUSTER, "2.52.0", lambda found: found["spec"].update(rayVersion="2.51.0")),
    (CLUSTER, "2.52.0", lambda found: found["spec"].pop("rayVersion")),
    (
        CLUSTER,
        "and secretName",
        lambda found: found["spec"]["authOptions"].update(enableK8sTokenAuth=True),
    ),
    (
        JOB,
        "suspend without",
        lambda found: found["spec"].update(suspend=True, shutdownAfterJobFinishes=False),
    ),
    (
        JOB,
        "ttlSecondsAfterFinished without",
        lambda found: found["spec"].update(
            ttlSecondsAfterFinished=1, shutdownAfterJobFinishes=False
        ),
    ),
    (
        JOB,
        "preRunningDeadlineSeconds is below",
        lambda found: found["spec"].update(preRunningDeadlineSeconds=0),
    ),
    (
        JOB,
        "activeDeadlineSeconds is below",
        lambda found: found["spec"].update(activeDeadlineSeconds=0),
    ),
    (JOB, "backoffLimit is below", lambda found: found["spec"].update(backoffLimit=-1)),
    (JOB, "or both", lambda found: found["spec"].pop("rayClusterSpec")),
    (
        JOB,
        "clusterSelector with",
        lambda found: (
            found["spec"].pop("rayClusterSpec"),
            found["spec"].update(clusterSelector={"ray.io/cluster": "a"}),
        ),
    ),
    (JOB, "InteractiveMode", lambda found: found["spec"].update(submissionMode="InteractiveMode")),
    (JOB, "SidecarMode", lambda found: found["spec"].update(submissionMode="SidecarMode")),
    (JOB, "no mapping", lambda found: found["spec"].update(runtimeEnvYAML="text")),
    (
        JOB,
        "deletionRules with shutdown",
        lambda found: _rules(found, ("DeleteCluster", SUCCESS), shutdown=True),
    ),
    (JOB, "needs deletionRules", lambda found: _rules(found)),
    (
        JOB,
        "DeleteWorkers with autoscaling",
        lambda found: _rules(found, ("DeleteWorkers", SUCCESS)),
    ),
    (JOB, "either jobStatus or", lambda found: _rules(found, ("DeleteCluster", {}))),
    (
        JOB,
        "two rules",
        lambda found: _rules(found, ("DeleteCluster", SUCCESS), ("DeleteCluster", SUCCESS)),
    ),
    (
        JOB,
        "before the job",
        lambda found: _rules(
            found, ("DeleteCluster", {**SUCCESS, "ttlSeconds": 9}), ("DeleteSelf", SUCCESS)
        ),
    ),
    (
        SERVICE,
        "name of headService",
        lambda found: _head(found).update(headService={"metadata": {"name": "x"}}),
    ),
    (SERVICE, "is none of", lambda found: found["spec"]["upgradeStrategy"].update(type="Rolling")),
    (
        SERVICE,
        "that a RayService creates",
        lambda found: ray_cluster(found).update(upgradeStrategy={"type": "None"}),
    ),
    (STEPS, "need autoscaling", lambda found: ray_cluster(found).pop("enableInTreeAutoscaling")),
    (
        STEPS,
        "are missing",
        lambda found: found["spec"]["upgradeStrategy"].pop("clusterUpgradeOptions"),
    ),
    (STEPS, "step <= surge", lambda found: _upgrade(found).update(stepSizePercent=60)),
    (STEPS, "intervalSeconds", lambda found: _upgrade(found).update(intervalSeconds=0)),
    (STEPS, "gatewayClassName", lambda found: _upgrade(found).pop("gatewayClassName")),
    (NIGHTLY, "a time zone in", lambda found: found["spec"].update(schedule="TZ=UTC 0 1 * * *")),
    (NIGHTLY, "five fields", lambda found: found["spec"].update(schedule="0 1 * *")),
    (NIGHTLY, "empty timeZone", lambda found: found["spec"].update(timeZone="")),
    (
        NIGHTLY,
        "suspend without",
        lambda found: found["spec"]["jobTemplate"].update(
            suspend=True, shutdownAfterJobFinishes=False
        ),
    ),
]


@pytest.mark.parametrize(("example", "sentence", "change"), WRONG)
def test_an_error_is_found(example: tuple[str, str], sentence: str, change: Change) -> None:
    changed = build_one(*example)
    change(changed)
    found = refusals(changed)
    assert any(sentence in text for text in found), found


def test_rules_that_the_operator_accepts_are_not_refused() -> None:
    job = build_one(*JOB)
    _rules(job, ("DeleteCluster", SUCCESS), ("DeleteCluster", {"jobDeploymentStatus": "Failed"}))
    assert refusals(job) == []


@pytest.mark.parametrize(
    "name", ["serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"]
)
def test_a_field_that_is_not_read_is_found(name: str) -> None:
    service = build_one(*SERVICE)
    service["spec"][name] = 300
    assert ignored(service) == [name]
