"""All pods of the manifests keep to the rules for pods; and each rule catches its violation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.kubernetes import BUILT, KUBECTL, Pod, build, pods
from tests.cluster.pod_rules import API_TOKEN, violations

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@pytest.mark.parametrize("folder", BUILT)
def test_every_pod_keeps_to_the_rules(folder: str) -> None:
    assert {str(pod): violations(pod) for pod in pods(folder)} == {
        str(pod): [] for pod in pods(folder)
    }


def test_no_kind_of_pod_is_overlooked() -> None:
    kinds = {each["kind"] for folder in BUILT for each in build(folder)}
    without_pods = {"NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "PodMonitor"}
    with_pods = {"RayCluster", "RayJob", "RayCronJob", "RayService", "Deployment", "StatefulSet"}
    assert kinds == without_pods | with_pods | {"Service"}
    assert len([pod for folder in BUILT for pod in pods(folder)]) == 21


def _first(spec: Any) -> Any:
    return spec["containers"][0]


WRONG: list[tuple[str, Callable[[Any, Any], object]]] = [
    ("runs as root", lambda spec, _: spec["securityContext"].update(runAsUser=0)),
    ("runs as root", lambda spec, _: spec["securityContext"].pop("runAsNonRoot")),
    ("has no seccomp profile", lambda spec, _: spec["securityContext"].pop("seccompProfile")),
    ("has no fsGroup", lambda spec, _: spec["securityContext"].pop("fsGroup")),
    ("the Kubernetes API", lambda spec, _: spec.pop("automountServiceAccountToken")),
    ("variables", lambda spec, _: spec.update(enableServiceLinks=True)),
    ("namespace of its machine", lambda spec, _: spec.update(hostNetwork=True)),
    ("default NetworkPolicy", lambda _, labels: labels.pop("app.kubernetes.io/part-of")),
    ("told apart", lambda _, labels: labels.pop("app.kubernetes.io/component")),
    ("may write", lambda spec, _: _first(spec)["securityContext"].pop("readOnlyRootFilesystem")),
    ("may write", lambda spec, _: _first(spec)["securityContext"].update(privileged=True)),
    ("may write", lambda spec, _: _first(spec)["securityContext"].pop("capabilities")),
    ("may write", lambda spec, _: _first(spec).pop("securityContext")),
    ("without a digest", lambda spec, _: _first(spec).update(image="maml-ray:2.60.0-cpu")),
    ("without a digest", lambda spec, _: _first(spec).update(image="maml-ray@sha256:12")),
    ("no requests or limits", lambda spec, _: _first(spec)["resources"].pop("limits")),
    ("no requests or limits", lambda spec, _: _first(spec)["resources"]["limits"].pop("memory")),
    ("no directory to write to", lambda spec, _: _first(spec).pop("env")),
    ("no directory to write to", lambda spec, _: _first(spec)["volumeMounts"].pop(0)),
    (
        "token of the Kubernetes API",
        lambda spec, _: _first(spec)["volumeMounts"].append({"name": "x", "mountPath": API_TOKEN}),
    ),
    ("not there", lambda spec, _: spec["volumes"].pop()),
    ("not there", lambda spec, _: _first(spec)["volumeMounts"].pop()),
    ("has a hostPath", lambda spec, _: spec["volumes"].append({"name": "x", "hostPath": {}})),
    ("fill the disk", lambda spec, _: spec["volumes"][0].update(emptyDir={})),
    ("others can read", lambda spec, _: spec["volumes"][-1]["secret"].pop("defaultMode")),
    ("may write", lambda spec, _: spec.update(initContainers=[{"name": "x", "image": "x"}])),
]


@pytest.mark.parametrize(("sentence", "change"), WRONG)
def test_a_violation_is_found(sentence: str, change: Callable[[Any, Any], object]) -> None:
    (pod,) = pods("serve")
    spec, labels = copy.deepcopy(pod.spec), dict(pod.labels)
    change(spec, labels)
    found = violations(Pod("changed", labels, spec))
    assert any(sentence in text for text in found), found
