"""The files for `ray up` are valid under Ray's schema, its sources and EC2's API model."""

from __future__ import annotations

import copy
import re
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.files import CLUSTER, load, pin, python_tag
from tests.cluster.provider_keys import known_keys, unknown_keys

NAMES = ("aws", "gcp", "on-premises")
CLOUDS = ("aws", "gcp")
GCP_INSTANCE = {"machineType", "disks", "metadata", "scheduling"}
"""Fields of Compute Engine's instances.insert that gcp.yaml uses."""


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = load(CLUSTER / f"{name}.yaml")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(config(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_is_caught_by_the_schema(name: str) -> None:
    wrong = {**config(name), "max_wrokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_provider_is_one_that_ray_reads(name: str) -> None:
    assert unknown_keys(config(name)["provider"]) == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_of_the_provider_passes_rays_schema_and_is_caught_here(name: str) -> None:
    wrong = config(name)
    wrong["provider"]["cache_stoped_nodes"] = False
    validate_config(prepare_config(copy.deepcopy(wrong)))
    assert unknown_keys(wrong["provider"]) == {"cache_stoped_nodes"}


def test_the_keys_that_ray_reads_are_found() -> None:
    common = {"type", "use_internal_ips", "disable_node_updaters", "worker_liveness_check"}
    for kind, own in {
        "aws": {"region", "availability_zone", "cache_stopped_nodes", "security_group"},
        "gcp": {"region", "availability_zone", "project_id", "cache_stopped_nodes"},
        "local": {"head_ip", "worker_ips", "coordinator_address"},
    }.items():
        assert common | own <= known_keys(kind)
    assert "head_ip" not in known_keys("aws")


def violations(node_config: dict[str, Any]) -> str:
    """Return what is invalid in a request to EC2's RunInstances."""
    service = botocore.session.get_session().get_service_model("ec2")
    request = {**node_config, "MinCount": 1, "MaxCount": 1}
    shape = service.operation_model("RunInstances").input_shape
    return str(botocore.validate.ParamValidator().validate(request, shape).generate_report())


def test_ec2_knows_every_key_of_the_machines() -> None:
    for machine in config("aws")["available_node_types"].values():
        assert violations(machine["node_config"]) == ""
    wrong = {**machine["node_config"], "InstanceMarketOption": {"MarketType": "spot"}}
    assert "InstanceMarketOption" in violations(wrong)


def test_compute_engine_knows_every_key_of_the_machines() -> None:
    for machine in config("gcp")["available_node_types"].values():
        assert set(machine["node_config"]) <= GCP_INSTANCE
        zone = config("gcp")["provider"]["availability_zone"]
        (disk,) = machine["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"].startswith(f"zones/{zone}/")


def test_the_machine_image_has_a_driver_for_cuda_13() -> None:
    for machine in config("gcp")["available_node_types"].values():
        (disk,) = machine["node_config"]["disks"]
        driver = re.search(r"-nvidia-(\d+)$", disk["initializeParams"]["sourceImage"])
        assert driver is not None
        assert int(driver[1]) >= 580


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_has_the_learners_gpu_and_spot_machines_the_rollouts(name: str) -> None:
    found = config(name)
    types = found["available_node_types"]
    head = types.pop(found["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 1}
    assert types
    for workers in types.values():
        options = workers["node_config"]
        assert options.get("InstanceMarketOptions") == {"MarketType": "spot"} or (
            options["scheduling"]["provisioningModel"] == "SPOT"
        )
        assert 1 <= workers["min_workers"] <= workers["max_workers"] == found["max_workers"]
        assert workers["resources"]["CPU"] >= 1
        assert "GPU" not in workers["resources"]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_image_has_our_ray_and_python(name: str) -> None:
    assert config(name)["docker"]["image"] == f"rayproject/ray:{pin('ray')}-{python_tag()}-cpu"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_asks_for_the_token_and_has_it(name: str) -> None:
    found = config(name)
    for commands in (found["head_start_ray_commands"], found["worker_start_ray_commands"]):
        (start,) = (command for command in commands if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
    tokens = [remote for remote, local in found["file_mounts"].items() if local.endswith("_token")]
    assert [re.search(r"/\.ray/auth_token$", remote) is not None for remote in tokens] == [True]
    if name in CLOUDS:  # also for commands run by hand in the container
        assert "--env RAY_AUTH_MODE=token" in found["docker"]["run_options"]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_installs_egl_and_the_pinned_package(name: str) -> None:
    found = config(name)
    assert "libegl1" in str(found["setup_commands"])
    for commands in ("head_setup_commands", "worker_setup_commands"):
        if name in CLOUDS:
            assert "constraints.txt" in found[commands][-1]
            assert "maml-ray" in found[commands][-1]
    if name not in CLOUDS:
        assert "constraints.txt" in found["setup_commands"][-1]
    assert "dist" in found["file_mounts"].values()
