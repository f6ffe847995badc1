"""The manifests for Kubernetes are valid under its schemas and KubeRay's, and fit together."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from maml_ray.serving.http.access import OPEN_PATHS
from maml_ray.serving.settings import ServeSettings
from tests.cluster.command_checks import check_maml_ray
from tests.cluster.files import CLUSTER, ROOT, load, pin
from tests.cluster.kubernetes import (
    BUILT,
    KUBECTL,
    KUBERNETES,
    Manifest,
    build,
    build_one,
    pods,
    ray_cluster,
    source,
)

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

SCHEMAS = ROOT.parent / "shared" / "kuberay"
"""KubeRay's schemas, half a megabyte, are not part of this repository."""
VERSION = "1.37"
"""Of Kubernetes, whose schemas validate what is not KubeRay's."""
METADATA = {"name", "namespace", "labels", "annotations"}
KUBERAY = {
    "RayCluster": "raycluster",
    "RayJob": "rayjob",
    "RayCronJob": "nightly",
    "RayService": "rayservice",
}
"""Kinds, each with a folder that has one."""

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
    text = (SCHEMAS / f"{kind.lower()}s.v1.schema.json").read_text(encoding="utf-8")
    return strict(json.loads(text))


def violations(manifest: Manifest) -> list[str]:
    """Return the violations of KubeRay's schema, with their locations."""
    errors = jsonschema.Draft7Validator(read_schema(manifest["kind"])).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def manifests(api: str | None = None) -> Iterator[tuple[str, Manifest]]:
    """Yield folders and their objects: of one API group and version, or of all."""
    for folder in BUILT:
        for manifest in build(folder):
            if api in (None, manifest["apiVersion"]):
                yield folder, manifest


# Schemas.


@needs_schemas
def test_kuberay_knows_every_key() -> None:
    found = list(manifests("ray.io/v1"))
    assert {manifest["kind"] for _, manifest in found} == set(KUBERAY)
    for folder, manifest in found:
        assert (folder, violations(manifest)) == (folder, [])
        assert set(manifest["metadata"]) <= METADATA


@needs_schemas
@pytest.mark.parametrize("kind", KUBERAY)
def test_a_misspelt_key_is_caught_however_deep_it_is(kind: str) -> None:
    for path in (
        (),
        ("workerGroupSpecs", 0),
        ("headGroupSpec", "template", "spec", "containers", 0),
        ("headGroupSpec", "template", "spec", "securityContext", "seccompProfile"),
    ):
        wrong = build_one(KUBERAY[kind], kind)
        place: Any = ray_cluster(wrong)
        for key in path:
            place = place[key]
        place["misspelt"] = "x"
        complaints = violations(wrong)
        assert complaints
        assert all("misspelt" in complaint for complaint in complaints)


def test_kubernetes_knows_every_key_of_its_own_kinds() -> None:
    others = ("ray.io/v1", "monitoring.coreos.com/v1")
    own = [each for _, each in manifests() if each["apiVersion"] not in others]
    assert len(own) > 10
    for manifest in own:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        assert set(manifest["metadata"]) <= METADATA


@pytest.mark.parametrize("folder", BUILT)
def test_kubernetes_knows_every_key_of_the_pods(folder: str) -> None:
    """Pods of KubeRay's objects, too, for which Kubernetes has a newer schema than KubeRay."""
    for pod in pods(folder):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod.spec}
        kubernetes_validate.validate(whole, VERSION, strict=True)


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "strategy", "misspelt"),
        ("spec", "template", "spec", "containers", 0, "livenessProbe", "misspelt"),
        ("spec", "template", "spec", "containers", 0, "lifecycle", "preStop", "misspelt"),
        ("spec", "template", "spec", "volumes", 0, "emptyDir", "misspelt"),
    ],
)
def test_kubernetes_schemas_catch_a_misspelt_key(path: tuple[Any, ...]) -> None:
    wrong = build_one("serve", "Deployment")
    place: Any = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="misspelt"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_volume_of_the_runs_is_there_for_many_pods() -> None:
    claim = build_one("common", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    named = {
        volume["persistentVolumeClaim"]["claimName"]
        for folder in BUILT
        for pod in pods(folder)
        for volume in pod.spec.get("volumes", ())
        if "persistentVolumeClaim" in volume
    }
    assert named == {claim["metadata"]["name"]}


# Images.


def test_images_have_one_place_and_a_digest_to_fill_in() -> None:
    component = source("images/kustomization.yaml")
    assert {each["digest"] for each in component["images"]} == {f"sha256:{'0' * 64}"}
    texts = [path.read_text("utf-8") for path in KUBERNETES.rglob("*.yaml")]
    used = {name for text in texts for name in re.findall(r"image: (\S+)", text)}
    assert {each["name"] for each in component["images"]} == used
    ours = {each["newName"] for each in component["images"] if each["name"] != "redis"}
    assert ours == {"registry.example.com/maml-ray"}


def test_the_gpu_has_the_image_for_it() -> None:
    for path in ("raycluster/raycluster.yaml", "rayservice/rayservice.yaml"):
        cluster = ray_cluster(source(path))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"] == f"maml-ray-{'gpu' if gpu else 'cpu'}"


# Ray clusters.


@pytest.mark.parametrize("kind", KUBERAY)
def test_a_cluster_has_our_ray_and_asks_for_its_token(kind: str) -> None:
    cluster = ray_cluster(build_one(KUBERAY[kind], kind))
    assert cluster["rayVersion"] == pin("ray")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "maml-ray-token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"


def test_a_group_has_the_learners_gpu_and_an_autoscaled_one_the_rollouts() -> None:
    cluster = ray_cluster(build_one("raycluster", "RayCluster"))
    assert cluster["enableInTreeAutoscaling"] is True
    head, (learner, rollouts) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    (container,) = learner["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert learner["minReplicas"] == learner["maxReplicas"] == 1
    # Rollout actors take CPUs: only their own group offers any.
    for group in (head, learner):
        assert group["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in rollouts["rayStartParams"]
    assert rollouts["minReplicas"] < rollouts["maxReplicas"]


# Jobs.


@pytest.mark.parametrize(("folder", "kind"), [("rayjob", "RayJob"), ("nightly", "RayCronJob")])
def test_a_job_has_the_cluster_that_stands_alone_and_nothing_else_is_created(
    folder: str, kind: str
) -> None:
    assert [each["kind"] for each in build(folder)] == [kind]
    cluster = ray_cluster(build_one("raycluster", "RayCluster"))
    assert ray_cluster(build_one(folder, kind)) == cluster


def test_a_nightly_run_is_the_one_that_stands_alone() -> None:
    template = build_one("nightly", "RayCronJob")["spec"]["jobTemplate"]
    assert template == build_one("rayjob", "RayJob")["spec"]


def test_a_job_that_fails_goes_on_and_has_time_for_its_checkpoint() -> None:
    spec = build_one("rayjob", "RayJob")["spec"]
    command = shlex.split(spec["entrypoint"])
    assert command[:2] == ["maml-ray", "train"]
    assert command[command.index("--resume") + 1] == "auto"
    assert "run.storage=file:///runs" in command
    assert spec["backoffLimit"] >= 1
    wait = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert 10 <= wait < head["terminationGracePeriodSeconds"]


def test_a_jobs_gpu_is_given_back_however_the_job_ends() -> None:
    spec = build_one("rayjob", "RayJob")["spec"]
    # Rules match SUCCEEDED and FAILED only, so not a job that was stopped.
    assert spec["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in spec
    assert spec["ttlSecondsAfterFinished"] == 0
    assert 600 <= spec["preRunningDeadlineSeconds"] <= 3600 < spec["activeDeadlineSeconds"]


def test_a_run_has_the_name_of_its_job() -> None:
    """Retries have the same name, nights have different ones."""
    spec = build_one("rayjob", "RayJob")["spec"]
    assert "run.name=$RUN_NAME" in shlex.split(spec["entrypoint"])
    # The submitter's shell fills it in: `ray job submit ... -- ENTRYPOINT`.
    (container,) = spec["submitterPodTemplate"]["spec"]["containers"]
    (variable,) = (each for each in container["env"] if each["name"] == "RUN_NAME")
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": label}}
    assert container["name"] == "ray-job-submitter"  # else the operator does not find it


def test_a_jobs_settings_are_where_its_command_looks_for_them() -> None:
    spec = build_one("rayjob", "RayJob")["spec"]
    path = Path(shlex.split(spec["entrypoint"])[2])
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert str(path.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_a_queue_gets_a_job_that_it_may_hold() -> None:
    job, plain = build_one("kueue", "RayJob"), build_one("rayjob", "RayJob")
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "user-queue"}
    assert job["spec"]["suspend"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False  # a quota is fixed
    for key in set(plain["spec"]) - {"rayClusterSpec"}:
        assert job["spec"][key] == plain["spec"][key]


# Services.


def test_the_service_serves_what_serve_deploy_does() -> None:
    ours = yaml.safe_load(build_one("rayservice", "RayService")["spec"]["serveConfigV2"])
    theirs = load(CLUSTER / "serve.yaml")
    for config in (ours, theirs):
        for application in config["applications"]:
            application["args"].pop("run")  # each names a run of its own
            application["args"].pop("token_file")  # a mounted secret here
        config.pop("http_options", None)  # loopback there, the pods' addresses here
        config.pop("proxy_location", None)
    assert ours == theirs


def test_ray_serve_knows_every_key_of_the_service() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed")
    found = yaml.safe_load(build_one("rayservice", "RayService")["spec"]["serveConfigV2"])
    schema.ServeDeploySchema.model_validate(found)
    assert set(found) <= set(schema.ServeDeploySchema.model_fields)  # it lets others pass
    for application in found["applications"]:
        assert set(application) <= set(schema.ServeApplicationSchema.model_fields)
        for deployment in application["deployments"]:
            assert set(deployment) <= set(schema.DeploymentSchema.model_fields)


def token_files() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the token files of both services, and the pods that read them."""
    config = yaml.safe_load(build_one("rayservice", "RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    for pod in pods("rayservice"):
        yield application["args"]["token_file"], pod.spec
    (pod,) = pods("serve")
    arguments = pod.spec["containers"][0]["args"]
    yield arguments[arguments.index("--token-file") + 1], pod.spec


def test_the_services_have_a_token_of_their_own() -> None:
    found = list(token_files())
    assert len(found) == 3
    for path, spec in found:
        folder, _, key = path.rpartition("/")
        mounts = {each["mountPath"]: each for each in spec["containers"][0]["volumeMounts"]}
        assert mounts[folder]["readOnly"] is True
        (volume,) = (each for each in spec["volumes"] if each["name"] == mounts[folder]["name"])
        assert volume["secret"]["secretName"] == "maml-ray-serve-token"
        assert key == "token"  # as cluster/README.md creates it


def test_the_service_on_ray_listens_on_the_pods_addresses() -> None:
    config = yaml.safe_load(build_one("rayservice", "RayService")["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_the_head_of_the_service_keeps_its_state_in_redis() -> None:
    options = ray_cluster(build_one("rayservice", "RayService"))["gcsFaultToleranceOptions"]
    service = build_one("redis", "Service")
    (port,) = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    (pod,) = pods("redis")
    (variable,) = pod.spec["containers"][0]["env"]
    assert variable["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert "noeviction" in pod.spec["containers"][0]["args"]


def test_upgrades_in_steps_change_nothing_else() -> None:
    steps = build("incremental-upgrade")
    for manifest in steps:
        if manifest["kind"] == "RayService":
            manifest["spec"]["upgradeStrategy"] = {"type": "NewCluster"}
    assert steps == build("rayservice")


def test_the_service_without_ray_is_a_command_that_we_have() -> None:
    (pod,) = pods("serve")
    (container,) = pod.spec["containers"]
    arguments: list[str] = container["command"][1:] + container["args"]
    assert container["command"][0] == "maml-ray"
    check_maml_ray(arguments)
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"


def test_the_service_without_ray_answers_what_is_in_flight_before_it_ends() -> None:
    (pod,) = pods("serve")
    (container,) = pod.spec["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = ServeSettings.model_fields["stop_timeout_s"].default
    assert pod.spec["terminationGracePeriodSeconds"] > sleep + longest
    assert build_one("serve", "Deployment")["spec"]["strategy"] == {
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}
    }


def test_probes_ask_where_no_token_is_needed() -> None:
    (pod,) = pods("serve")
    (container,) = pod.spec["containers"]
    ports = {each["name"] for each in container["ports"]}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[name]["httpGet"]
        assert get["path"] in OPEN_PATHS
        assert get["port"] in ports


@pytest.mark.parametrize("folder", ["serve", "redis"])
def test_a_service_selects_its_pods_and_a_port_of_theirs(folder: str) -> None:
    service = build_one(folder, "Service")
    (pod,) = pods(folder)
    assert service["spec"]["selector"].items() <= pod.labels.items()
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in [each["name"] for each in pod.spec["containers"][0]["ports"]]


@pytest.mark.parametrize("folder", ["serve", "rayservice"])
def test_a_disruption_budget_lets_machines_be_drained(folder: str) -> None:
    budget = build_one(folder, "PodDisruptionBudget")["spec"]
    selected = [
        pod
        for pod in pods(folder)
        if budget["selector"]["matchLabels"].items() <= pod.labels.items()
    ]
    assert len(selected) == 1
    if folder == "serve":
        assert budget["maxUnavailable"] < build_one(folder, "Deployment")["spec"]["replicas"]
    else:
        # Of pods of other controllers than its own, Kubernetes only counts those that are there.
        assert "maxUnavailable" not in budget
        assert isinstance(budget["minAvailable"], int)
        (group,) = ray_cluster(build_one(folder, "RayService"))["workerGroupSpecs"]
        assert 0 < budget["minAvailable"] < group["minReplicas"]


# Metrics.


def test_every_pod_with_metrics_is_asked_for_them() -> None:
    monitor = build_one("monitoring", "PodMonitor")
    spec = monitor["spec"]
    # The fields of the Prometheus operator's API that are used: its schema is not here.
    assert set(spec) == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    endpoints = spec["podMetricsEndpoints"]
    assert all(set(each) <= {"port", "path", "interval"} for each in endpoints)
    asked = {each["port"] for each in endpoints}
    there: set[str] = set()
    for folder in BUILT:
        for pod in pods(folder):
            assert spec["selector"]["matchLabels"].items() <= pod.labels.items()
            containers = pod.spec["containers"]
            ports = {port["name"] for each in containers for port in each.get("ports", ())}
            if pod.labels["app.kubernetes.io/component"] not in ("submitter", "redis"):
                assert ports & asked, pod
            there |= ports
    assert asked <= there
    limit = load(CLUSTER / "prometheus" / "prometheus.yaml")["global"]["scrape_interval"]
    assert {each["interval"] for each in endpoints} == {limit}
