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
def test_a_plan_takes_a_cpu_an_actor_and_a_gpu_where_there_is_one(
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
def test_what_is_not_there_is_refused_with_the_setting_and_the_remedy(
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
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.address"), connected(address):
        pass


def test_what_an_autoscaler_may_bring_is_not_refused_and_a_gpu_is_waited_for() -> None:
    settings = ClusterSettings(autoscaler=True, min_rollout_actors=3, learner_device="cuda")
    assert plan_resources(settings, {"CPU": 1.0}) == ResourcePlan(1, 1, "cuda")
    unsure = ClusterSettings(autoscaler=True)
    assert plan_resources(unsure, {}) == ResourcePlan(0, 0, "cpu")


@pytest.mark.parametrize("changed", ["ray_version", "python_version"])
def test_other_versions_than_the_cluster_s_are_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    theirs = {**ours, changed: "1.2.3"}

    def refuse(**options: object) -> None:  # as ray.init does once it knows the cluster's record
        check_version_info(theirs, "node 10.0.0.1")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("maml_ray.runtime.ray_session.check_reachable", lambda address: None)
    with pytest.raises(ResourceError) as caught, connected("head:6379"):
        pass
    told = str(caught.value)
    assert f"Ray {theirs['ray_version']} on Python {theirs['python_version']}" in told
    assert f"Ray {ours['ray_version']} on Python {ours['python_version']}" in told
    assert "maml-ray submit" in told
    assert "\n" not in told
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("lost", [False, True])
def test_a_sigterm_while_ray_starts_is_heard_also_where_its_exception_is_lost(lost: bool) -> None:
    """Ray's own handler leaves with code 15; raised in a destructor, that goes no further."""

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
