"""The manifests for Kubernetes are valid under KubeRay's schemas and its operator's rules."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.files import CLUSTER, ROOT, load, pin

FOLDER = CLUSTER / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "kuberay"
"""KubeRay's schemas, half a megabyte, are not part of this repository."""
KINDS = {"raycluster": "rayclusters", "rayjob": "rayjobs", "rayservice": "rayservices"}
METADATA = {"name", "namespace", "labels", "annotations"}

needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(),
    reason=f"KubeRay's schemas are not at {SCHEMAS}: the manifests' keys are not checked",
)


def strict(schema: Any) -> Any:
    """Return ``schema`` with unknown keys rejected at every level."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


@cache
def read_schema(kind: str) -> Any:
    text = (SCHEMAS / f"{kind}.v1.schema.json").read_text(encoding="utf-8")
    return strict(json.loads(text))


def violations(found: Any, schema: Any) -> list[str]:
    """Return the schema violations of ``found``, with their locations."""
    errors = jsonschema.Draft7Validator(schema).iter_errors(found)
    return [f"{error.json_path}: {error.message}" for error in errors]


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = load(FOLDER / f"{name}.yaml")
    return found


def spec_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return the Ray cluster of a manifest."""
    spec: dict[str, Any] = found["spec"]
    inner: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return inner


def cluster_spec(name: str) -> dict[str, Any]:
    return spec_of(manifest(name))


def groups(name: str) -> list[dict[str, Any]]:
    """Return the head's group and the workers' groups."""
    spec = cluster_spec(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(name: str) -> Iterator[dict[str, Any]]:
    """Yield every pod of a manifest."""
    for group in groups(name):
        yield group["template"]["spec"]
    submitter = manifest(name)["spec"].get("submitterPodTemplate")
    if submitter:
        yield submitter["spec"]


@needs_schemas
@pytest.mark.parametrize("name", KINDS)
def test_kuberay_knows_every_key(name: str) -> None:
    assert violations(manifest(name), read_schema(KINDS[name])) == []
    assert set(manifest(name)["metadata"]) <= METADATA


@needs_schemas
@pytest.mark.parametrize("name", KINDS)
def test_a_misspelt_key_is_caught_however_deep_it_is(name: str) -> None:
    schema = read_schema(KINDS[name])
    for path in (
        (),
        ("workerGroupSpecs", 0),
        ("headGroupSpec", "template", "spec", "containers", 0),
        ("headGroupSpec", "template", "spec", "securityContext", "seccompProfile"),
    ):
        wrong = copy.deepcopy(manifest(name))
        place: Any = spec_of(wrong)
        for key in path:
            place = place[key]
        place["misspelt"] = "x"
        complaints = violations(wrong, schema)
        assert complaints
        assert all("misspelt" in complaint for complaint in complaints)


@needs_schemas
def test_the_volume_claim_is_one() -> None:
    claim = manifest("runs")
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert set(claim) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(claim["metadata"]) <= METADATA
    # The same fields stand in a pod's ephemeral volume, whose schema KubeRay's holds.
    schema = read_schema("rayclusters")
    for key in ("spec", "headGroupSpec", "template", "spec", "volumes"):
        schema = schema["properties"][key]
    schema = schema["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    assert violations(claim["spec"], schema["properties"]["spec"]) == []
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", KINDS)
def test_the_operators_own_rules_are_kept(name: str) -> None:
    found, spec = manifest(name), cluster_spec(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
    assert len(found["metadata"]["name"]) <= 47
    assert spec["rayVersion"] == pin("ray")
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in groups(name):
        assert group["template"]["spec"]["restartPolicy"] == "Never"
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", KINDS)
def test_every_image_is_ours_with_our_ray(name: str) -> None:
    for pod in pods(name):
        (container,) = pod["containers"]
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        build = "gpu" if gpu else "cpu"
        assert container["image"] == f"registry.example.com/maml-ray:{pin('ray')}-{build}"


@pytest.mark.parametrize("name", KINDS)
def test_the_token_is_asked_for(name: str) -> None:
    assert cluster_spec(name)["authOptions"] == {"mode": "token", "secretName": "maml-ray-token"}


@pytest.mark.parametrize("name", KINDS)
def test_nobody_is_root_and_nobody_can_become_it(name: str) -> None:
    """Kubernetes' restricted pod security standard."""
    for pod in pods(name):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 1000  # Ray's own user in Ray's own image
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert restricted(container["securityContext"])
        for volume in pod.get("volumes", ()):
            assert "hostPath" not in volume
    assert restricted(cluster_spec(name)["autoscalerOptions"]["securityContext"])


def restricted(context: dict[str, Any]) -> bool:
    return context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", KINDS)
def test_resources_are_asked_for_and_limited(name: str) -> None:
    asked = [container["resources"] for pod in pods(name) for container in pod["containers"]]
    asked.append(cluster_spec(name)["autoscalerOptions"]["resources"])
    for resources in asked:
        assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}


@pytest.mark.parametrize("name", KINDS)
def test_every_mount_has_its_volume(name: str) -> None:
    for pod in pods(name):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        mounts = [
            mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())
        ]
        assert sorted(volumes) == sorted(mounts)
        if "runs" in volumes:
            claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
            assert claim == manifest("runs")["metadata"]["name"]
    for group in groups(name):
        assert "runs" in str(group["template"]["spec"]["volumes"])


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_group_has_the_learners_gpu_and_an_autoscaled_one_the_rollouts(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["enableInTreeAutoscaling"] is True
    head, learner, rollouts = groups(name)
    assert (
        learner["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    )
    assert learner["minReplicas"] == learner["maxReplicas"] == 1
    # Rollout actors take CPUs: only their own group offers any.
    for group in (head, learner):
        assert group["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in rollouts["rayStartParams"]
    assert rollouts["minReplicas"] < rollouts["maxReplicas"]


def test_a_job_has_the_cluster_that_stands_alone() -> None:
    assert cluster_spec("rayjob") == cluster_spec("raycluster")


def test_a_job_that_fails_goes_on_and_has_time_for_its_checkpoint() -> None:
    spec = manifest("rayjob")["spec"]
    command = shlex.split(spec["entrypoint"])
    assert command[:2] == ["maml-ray", "train"]
    assert command[command.index("--resume") + 1] == "auto"
    assert "run.storage=file:///runs" in command
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    wait = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert 10 <= wait < head["terminationGracePeriodSeconds"]


def test_a_jobs_settings_are_where_its_command_looks_for_them() -> None:
    spec = manifest("rayjob")["spec"]
    path = Path(shlex.split(spec["entrypoint"])[2])
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert str(path.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_service_serves_what_serve_deploy_does() -> None:
    ours = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    file = CLUSTER / "serve.yaml"
    if not file.exists():
        pytest.skip("cluster/serve.yaml is not there yet: serveConfigV2 is compared with nothing")
    theirs = load(file)
    for config in (ours, theirs):
        for application in config["applications"]:
            application["args"].pop("run")  # each names a run of its own
        config.pop("http_options", None)  # loopback there, the pods' addresses here
        config.pop("proxy_location", None)
    assert ours == theirs


def test_ray_serve_knows_every_key_of_the_service() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed")
    found = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    schema.ServeDeploySchema.model_validate(found)
    assert set(found) <= set(schema.ServeDeploySchema.model_fields)  # it lets others pass
    for application in found["applications"]:
        assert set(application) <= set(schema.ServeApplicationSchema.model_fields)
        for deployment in application["deployments"]:
            assert set(deployment) <= set(schema.DeploymentSchema.model_fields)


def test_the_service_has_a_token_of_its_own() -> None:
    for group in groups("rayservice"):
        (variable,) = group["template"]["spec"]["containers"][0]["env"]
        assert variable["name"] == "MAML_RAY_SERVE_TOKEN"
        assert variable["valueFrom"]["secretKeyRef"]["name"] != "maml-ray-token"


def test_the_service_listens_on_the_pods_addresses() -> None:
    ours = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    assert ours["http_options"] == {"host": "0.0.0.0", "port": 8000}
