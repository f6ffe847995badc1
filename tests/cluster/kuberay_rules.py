"""The rules of KubeRay's operator that its schemas do not contain.

From ``ray-operator/controllers/ray/utils/validation.go`` and the feature gates of KubeRay 1.7: what
the operator refuses after Kubernetes has accepted it, and what it does not look at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
"""Characters; services and clusters append to the name. RayCronJob: with room for eleven more."""
GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
"""Fields of a cluster whose feature gate is off by default."""
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
REDIS_VARIABLES = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")
NOT_READ = {
    "RayService": {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"},
}
"""Deprecated fields that the schema has and the operator does not read (KubeRay issue 1685)."""
GENERATED = ("address", "block", "no-monitor", "redis-password", "redis-username", "labels")
"""Parameters of ``ray start`` that KubeRay sets itself, overwrites, or refuses."""


def refusals(manifest: dict[str, Any]) -> list[str]:
    """Return why the operator would refuse a manifest, one sentence each."""
    kind, spec = manifest["kind"], manifest["spec"]
    check: Callable[[Any], Iterator[str]] = {
        "RayCluster": _cluster,
        "RayJob": _job,
        "RayService": _service,
        "RayCronJob": _cron_job,
    }[kind]
    return [*_name(kind, manifest["metadata"]["name"]), *check(spec)]


def ignored(manifest: dict[str, Any]) -> list[str]:
    """Return the fields of a manifest that the operator does not read."""
    return sorted(NOT_READ.get(manifest["kind"], set()) & set(manifest["spec"]))


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > MAX_NAME[kind]:
        yield f"the name has more than {MAX_NAME[kind]} characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "the name is no DNS-1035 label"


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    autoscaling = spec.get("enableInTreeAutoscaling", False)
    for group in (head, *workers):
        yield from _group(group, spec)
    for group in workers:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and None in (low, high):
            yield "without autoscaling a group needs minReplicas and maxReplicas"
        if low is not None and high is not None and not 0 <= low <= high:
            yield "minReplicas is negative or above maxReplicas"
        if autoscaling and group.get("suspend"):
            yield "a group cannot be suspended with autoscaling"
        for field in ("idleTimeoutSeconds", "priority"):
            if group.get(field) and not _autoscaler_v2(spec):
                yield f"{field} of a group needs autoscaler v2"
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield "idleTimeoutSeconds is negative"
    variables = _variables(head)
    if spec.get("gcsFaultToleranceOptions") is not None:
        options = spec["gcsFaultToleranceOptions"]
        yield from (f"{name} of the head" for name in REDIS_VARIABLES if name in variables)
        if options.get("backend", "redis") == "rocksdb":
            yield "backend rocksdb needs the feature gate GCSFaultToleranceEmbeddedStorage"
        elif "storage" in options:
            yield "storage is for the backend rocksdb"
    elif "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in variables:
        yield "REDIS_USERNAME of the head"
    if not autoscaling and variables.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 without autoscaling"
    if autoscaling and _autoscaler_v2(spec) and "RAY_enable_autoscaler_v2" in variables:
        yield "RAY_enable_autoscaler_v2 beside autoscalerOptions.version"
    if spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    for field, gate in GATED.items():
        if field in spec:
            yield f"{field} needs the feature gate {gate}"
    yield from _authentication(spec)


def _group(group: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    pod, parameters = group["template"]["spec"], group.get("rayStartParams", {})
    if not pod.get("containers"):
        yield "a group without a container"
    if set(parameters) & {"num-cpus", "num-gpus", "memory", "resources"} and group.get("resources"):
        yield "resources both in rayStartParams and of the group"
    yield from (f"rayStartParams.{name}" for name in GENERATED if name in parameters)
    scaled_by_v2 = spec.get("enableInTreeAutoscaling") and _autoscaler_v2(spec)
    if scaled_by_v2 and pod.get("restartPolicy", "Never") != "Never":
        yield "with autoscaler v2 restartPolicy must be Never"


def _authentication(spec: dict[str, Any]) -> Iterator[str]:
    options = spec.get("authOptions", {})
    if options.get("mode") == "token":
        version = re.fullmatch(r"(\d+)\.(\d+)\.\d+", spec.get("rayVersion", ""))
        if version is None or (int(version[1]), int(version[2])) < (2, 52):
            yield "tokens need rayVersion 2.52.0 or newer"
        if options.get("enableK8sTokenAuth") and options.get("secretName"):
            yield "enableK8sTokenAuth and secretName"
    elif options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth without mode token"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    selector = spec.get("clusterSelector")
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    for field, least in (
        ("ttlSecondsAfterFinished", 0),
        ("backoffLimit", 0),
        ("activeDeadlineSeconds", 1),
        ("preRunningDeadlineSeconds", 1),
    ):
        if spec.get(field, least) < least:
            yield f"{field} is below {least}"
    if (spec.get("rayClusterSpec") is None) == (not selector):
        yield "neither rayClusterSpec nor clusterSelector, or both"
    if selector and (spec.get("suspend") or spec.get("backoffLimit")):
        yield "clusterSelector with suspend or backoffLimit"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode with backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
        yield "SidecarMode with a submitter of its own"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"
    yield from _deletion(spec)
    if spec.get("rayClusterSpec") is not None:
        if spec["rayClusterSpec"].get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "enableK8sTokenAuth of a RayJob"
        yield from _cluster(spec["rayClusterSpec"])


def _deletion(spec: dict[str, Any]) -> Iterator[str]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules", [])
    legacy = {"onSuccess", "onFailure"} & set(strategy)
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules with shutdownAfterJobFinishes"
    if bool(rules) == bool(legacy) or (legacy and len(legacy) < 2):
        yield "deletionStrategy needs deletionRules, or onSuccess and onFailure"
    autoscaling = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling", False)
    policies = [rule["policy"] for rule in rules]
    policies += [strategy[name].get("policy") for name in sorted(legacy)]
    if autoscaling and "DeleteWorkers" in policies:
        yield "DeleteWorkers with autoscaling"
    if spec.get("clusterSelector") and {"DeleteWorkers", "DeleteCluster"} & set(policies):
        yield "a cluster of others cannot be deleted"
    seconds: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        after = condition.pop("ttlSeconds", 0)
        if len(condition) != 1:
            yield "a rule needs either jobStatus or jobDeploymentStatus"
        of_status = seconds.setdefault(str(condition), {})
        if rule["policy"] in of_status:
            yield "two rules for one policy and status"
        of_status[rule["policy"]] = after
    for of_status in seconds.values():
        order = [of_status[policy] for policy in DELETION_ORDER if policy in of_status]
        if order != sorted(order):
            yield "workers go before the cluster, the cluster before the job"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    cluster, strategy = spec["rayClusterConfig"], spec.get("upgradeStrategy", {})
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth of a RayService"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "a name of headService"
    if cluster.get("upgradeStrategy"):
        yield "upgradeStrategy of a cluster that a RayService creates"
    kind = strategy.get("type", "NewCluster")
    if kind not in UPGRADES:
        yield f"upgradeStrategy.type is none of {UPGRADES}"
    if kind == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(strategy.get("clusterUpgradeOptions"), cluster)
    yield from _cluster(cluster)


def _incremental(options: dict[str, Any] | None, cluster: dict[str, Any]) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "incremental upgrades need autoscaling"
    if options is None:
        yield "clusterUpgradeOptions are missing"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= step <= surge <= 100:
        yield "stepSizePercent and maxSurgePercent are not 0 <= step <= surge <= 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds is not positive"
    if not options.get("gatewayClassName"):
        yield "gatewayClassName is missing"


def _cron_job(spec: dict[str, Any]) -> Iterator[str]:
    if "TZ" in spec["schedule"]:
        yield "a time zone in the schedule"
    elif len(spec["schedule"].split()) != 5 and not spec["schedule"].startswith("@"):
        yield "the schedule has not five fields"
    if spec.get("timeZone") == "":
        yield "an empty timeZone"
    yield from _job(spec["jobTemplate"])


def _variables(group: dict[str, Any]) -> dict[str, Any]:
    containers = group["template"]["spec"].get("containers") or [{}]
    return {each["name"]: each.get("value") for each in containers[0].get("env", ())}


def _autoscaler_v2(spec: dict[str, Any]) -> bool:
    return bool(spec.get("autoscalerOptions", {}).get("version") == "v2")
