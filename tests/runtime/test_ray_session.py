from __future__ import annotations

import platform
import signal

import pytest
import ray
from ray._private.utils import check_version_info

from maml_ray.common.errors import Interrupted, ResourceError
from maml_ray.config.settings import ClusterSettings, SettingsError
from maml_ray.runtime.ray_session import (
    ResourcePlan,
    _interrupted_by_sigterm,
    connected,
    plan_resources,
)


@pytest.fixture(autouse=True)
def not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that other tests keep running in this process is not taken as the one to join."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    ("settings", "available", "plan"),
    [
        ({}, {"CPU": 4.0}, ResourcePlan(4, 0, "cpu")),
        ({}, {"CPU": 4.0, "GPU": 2.0}, ResourcePlan(4, 1, "cuda")),
        ({"rollout_actors": 3}, {"CPU": 4.0}, ResourcePlan(3, 0, "cpu")),
        ({"rollout_actors": 5}, {"CPU": 4.0}, ResourcePlan(4, 0, "cpu")),
        ({"learner_device": "cpu"}, {"CPU": 4.0, "GPU": 2.0}, ResourcePlan(4, 0, "cpu")),
        ({"learner_device": "cuda"}, {"CPU": 1.0, "GPU": 1.0}, ResourcePlan(1, 1, "cuda")),
    ],
)
def test_a_plan_has_a_cpu_per_actor_and_a_gpu_if_there_is_one(
    settings: dict[str, object], available: dict[str, float], plan: ResourcePlan
) -> None:
    assert plan_resources(ClusterSettings.model_validate(settings), available) == plan


@pytest.mark.parametrize(
    ("settings", "available", "words"),
    [
        ({"min_rollout_actors": 5}, {"CPU": 4.0}, ["cluster.min_rollout_actors is 5", "4 CPUs"]),
        ({"learner_device": "cuda"}, {"CPU": 4.0}, ["cluster.learner_device", "no GPU"]),
        ({}, {"memory": 1.0}, ["has 0 CPUs"]),
    ],
)
def test_missing_resources_name_the_setting_and_the_remedy(
    settings: dict[str, object], available: dict[str, float], words: list[str]
) -> None:
    with pytest.raises(ResourceError) as caught:
        plan_resources(ClusterSettings.model_validate(settings), available)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_refused_within_seconds(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.runtime.ray_session.CONNECT_TIMEOUT_S", 1.0)
    refusal = "no Ray cluster answers at .* within 1 seconds"
    with pytest.raises(ResourceError, match=refusal), connected(address):
        pass


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "http://host:8265"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.address"), connected(address):
        pass


def test_resources_that_an_autoscaler_may_add_are_not_refused() -> None:
    settings = ClusterSettings(autoscaler=True, min_rollout_actors=3, learner_device="cuda")
    assert plan_resources(settings, {"CPU": 1.0}) == ResourcePlan(1, 1, "cuda")
    unsure = ClusterSettings(autoscaler=True)
    assert plan_resources(unsure, {}) == ResourcePlan(0, 0, "cpu")


@pytest.mark.parametrize("changed", ["ray_version", "python_version"])
def test_different_versions_are_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    theirs = {**ours, changed: "1.2.3"}

    def refuse(**options: object) -> None:  # as ray.init does once it knows the cluster's record
        check_version_info(theirs, "node 10.0.0.1")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr("maml_ray.runtime.ray_session.check_reachable", lambda address: None)
    with pytest.raises(ResourceError) as caught, connected("head:6379"):
        pass
    message = str(caught.value)
    assert f"Ray {theirs['ray_version']} on Python {theirs['python_version']}" in message
    assert f"Ray {ours['ray_version']} on Python {ours['python_version']}" in message
    assert "maml-ray submit" in message
    assert "\n" not in message
    assert caught.value.exit_code == 4


def test_a_start_that_times_out_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def time_out(**options: object) -> None:  # as ray.init does on a machine that is too busy
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(ResourceError) as caught, connected(None):
        pass
    assert "cannot start Ray on this machine: The current node timed out" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", [False, True])
def test_a_sigterm_while_ray_starts_interrupts_even_if_its_exception_is_lost(lost: bool) -> None:
    """Ray's handler raises SystemExit(15), which is lost inside a destructor."""

    def own(number: int, frame: object) -> None:
        pytest.fail("it has been replaced")

    def rays(number: int, frame: object) -> None:
        if not lost:
            raise SystemExit(number)

    def starting() -> None:
        signal.signal(signal.SIGTERM, rays)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(Interrupted), _interrupted_by_sigterm():
            starting()
        assert signal.getsignal(signal.SIGTERM) is own
        with _interrupted_by_sigterm():
            pass  # nothing has come this time
    finally:
        signal.signal(signal.SIGTERM, before)
