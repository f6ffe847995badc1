"""What every pod of the manifests keeps to: one definition, with a sentence for each violation.

Kubernetes' restricted pod security standard, and beyond it: a read-only image by digest, resources,
no Kubernetes API, private secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.cluster.kubernetes import Pod

API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
HOST = ("hostNetwork", "hostPID", "hostIPC")


def violations(pod: Pod) -> list[str]:
    """Return what is wrong with a pod, one sentence each."""
    of_containers = [text for each in _containers(pod) for text in _container(each)]
    return [*_pod(pod), *of_containers, *_volumes(pod)]


def _containers(pod: Pod) -> list[dict[str, Any]]:
    return [*pod.spec.get("initContainers", ()), *pod.spec["containers"]]


def _pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "runs as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if not context.get("fsGroup"):
        yield "has no fsGroup, which reads its secrets and volumes"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "has access to the Kubernetes API"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "gets variables of the namespace's services"
    if any(pod.spec.get(key) for key in HOST):
        yield "shares a namespace of its machine"
    if pod.labels.get("app.kubernetes.io/part-of") != "maml-ray":
        yield "is not selected by the default NetworkPolicy"
    if "app.kubernetes.io/component" not in pod.labels:
        yield "is not told apart by the NetworkPolicies"


def _container(container: dict[str, Any]) -> Iterator[str]:
    if container.get("securityContext") != CONTAINER:
        yield "may write to its image, gain privileges or keep capabilities"
    if not re.fullmatch(r"[^@:]+@sha256:[0-9a-f]{64}", container["image"]):
        yield "has an image without a digest"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if not set(requests) == set(limits) >= {"cpu", "memory"}:
        yield "has no requests or limits"
    mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}
    home = [each.get("value") for each in container.get("env", ()) if each["name"] == "HOME"]
    if "/maml-ray@" in container["image"] and (home != ["/tmp"] or "/tmp" not in mounts):
        yield "has no directory to write to"
    if API_TOKEN in mounts and container["name"] != "autoscaler":
        yield "has the token of the Kubernetes API"


def _volumes(pod: Pod) -> Iterator[str]:
    volumes = {each["name"]: each for each in pod.spec.get("volumes", ())}
    # Of the StatefulSet's volumeClaimTemplates.
    claimed = {"data"} if "redis" in pod.owner else set()
    mounted = {mount["name"] for each in _containers(pod) for mount in each.get("volumeMounts", ())}
    if mounted != set(volumes) | claimed:
        yield "mounts a volume that is not there, or the other way round"
    for volume in volumes.values():
        (kind,) = set(volume) - {"name"}
        if kind not in VOLUMES:
            yield f"has a {kind}"
        if kind == "emptyDir" and "sizeLimit" not in volume[kind]:
            yield "may fill the disk of its machine"
        if kind == "secret" and volume[kind].get("defaultMode") != 0o400:
            yield "has a secret that others can read"
