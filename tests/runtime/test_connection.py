from __future__ import annotations

import platform
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import check_version_info

from maml_ray.common.errors import ClusterLost, Interrupted, ResourceError, TrainingFailed
from maml_ray.config.sections import ClusterSettings
from maml_ray.config.settings import SettingsError
from maml_ray.runtime.capacity import ResourcePlan, plan_resources
from maml_ray.runtime.connection.connect import _interrupted_by_sigterm, connected, is_local
from maml_ray.runtime.connection.session import RaySession


@pytest.fixture(autouse=True)
def not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that other tests keep running in this process is not taken as the one to join."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("settings", "available", "plan"),
    [
        ({}, {"CPU": 4.0}, ResourcePlan(4, 0, "cpu")),
        ({}, {"CPU": 4.0, "GPU": 2.0}, ResourcePlan(4, 1, "cuda")),
        ({"rollout_actors": 3}, {"CPU": 4.0}, ResourcePlan(3, 0, "cpu")),
        ({"rollout_actors": 5}, {"CPU": 4.0}, ResourcePlan(4, 0, "cpu")),
        ({"learner_device": "cpu"}, {"CPU": 4.0, "GPU": 2.0}, ResourcePlan(4, 0, "cpu")),
        ({"learner_device": "cuda"}, {"CPU": 1.0, "GPU": 1.0}, ResourcePlan(1, 1, "cuda")),
        ({"standby_learner": True}, {"CPU": 2.0}, ResourcePlan(2, 0, "cpu")),
        ({"standby_learner": True}, {"CPU": 2.0, "GPU": 1.0}, ResourcePlan(2, 0.5, "cuda")),
        ({"standby_learner": True}, {"CPU": 2.0, "GPU": 2.0}, ResourcePlan(2, 1, "cuda")),
        (
            {"standby_learner": True, "autoscaler": True},
            {"CPU": 2.0, "GPU": 1.0},
            ResourcePlan(2, 1, "cuda"),
        ),
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


STALE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("address", "variable", "last_started", "words"),
    [
        (STALE, None, None, ["cluster.address", "check the address"]),
        (f"ray://{STALE}", "127.0.0.1:2", None, ["ray://127", "cluster.address"]),
        (None, STALE, None, ["(RAY_ADDRESS)", "unset RAY_ADDRESS"]),
        (None, f"ray://{STALE}", None, ["(RAY_ADDRESS)", "unset RAY_ADDRESS"]),
        ("auto", STALE, None, ["(RAY_ADDRESS)", "unset RAY_ADDRESS"]),
        ("auto", None, STALE, ["'ray start' on this machine", "ray stop"]),
        (None, "auto", STALE, ["'ray start' on this machine", "ray stop"]),
    ],
)
def test_an_address_where_nothing_listens_is_refused_within_seconds_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    variable: str | None,
    last_started: str | None,
    words: list[str],
) -> None:
    monkeypatch.setattr("maml_ray.runtime.connection.address.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(
        "maml_ray.runtime.connection.address.find_running_cluster", lambda: last_started
    )
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    refusal = "no Ray cluster answers at .* within 0 seconds"
    with pytest.raises(ResourceError, match=refusal) as caught, connected(address):
        pass
    assert all(word in str(caught.value) for word in [STALE, *words])


def test_with_tls_an_address_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with pytest.raises(ResourceError, match="no Ray cluster answers"), connected(STALE):
        pass


def test_a_variable_that_asks_for_a_ray_of_ones_own_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, local in (("local", True), (STALE, False), ("", True)):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        assert is_local(None) is local
        assert not is_local(STALE)


def test_auto_without_a_cluster_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maml_ray.runtime.connection.address.find_running_cluster", lambda: None)
    with pytest.raises(ResourceError, match="ray start --head"), connected("auto"):
        pass


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", ":6379", "host:port", "h:99999", "http://host:8265"]
)
def test_a_malformed_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.address = .*host:port"), connected(address):
        pass
    with pytest.raises(SettingsError, match=r"cluster\.address = .*host:port"):
        ClusterSettings(address=address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match=r"RAY_ADDRESS = .*host:port"), connected(None):
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
    monkeypatch.setattr("maml_ray.runtime.connection.address.check_reachable", lambda address: None)
    with pytest.raises(ResourceError) as caught, connected("head:6379"):
        pass
    message = str(caught.value)
    assert f"Ray {theirs['ray_version']} on Python {theirs['python_version']}" in message
    assert f"Ray {ours['ray_version']} on Python {ours['python_version']}" in message
    assert "maml-ray submit" in message
    assert "\n" not in message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("address", "running", "host"),
    [
        ("127.0.0.1:6001", "127.0.0.1:6001", "127.0.0.1"),
        ("localhost:6001", "127.0.0.1:6001", "127.0.0.1"),
        ("auto", "127.0.0.1:6001", "127.0.0.1"),
        ("127.0.0.1:6001", "192.0.2.7:6001", "192.0.2.7"),
        ("auto", "192.0.2.7:6001", "192.0.2.7"),
        ("192.0.2.7:6001", "127.0.0.1:6001", "192.0.2.7"),
    ],
)
def test_a_ray_that_listens_on_loopback_only_is_joined_there_and_no_other(
    monkeypatch: pytest.MonkeyPatch, address: str, running: str, host: str
) -> None:
    """Such is the Ray of ``maml-ray train``; all others are where this machine's address is."""
    joined: list[str | None] = []

    def refuse(address: str, **options: object) -> None:  # ray.init begins with this
        joined.append(canonicalize_bootstrap_address(address))
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    services = "ray._private.services"
    monkeypatch.setattr(f"{services}.find_gcs_addresses", lambda: frozenset({running}))
    monkeypatch.setattr(f"{services}.find_bootstrap_address", lambda folder: None)
    monkeypatch.setattr(f"{services}.node_ip_address_from_perspective", lambda peer: "192.0.2.7")
    monkeypatch.setattr("ray._private.worker._global_node", None)
    monkeypatch.setattr("maml_ray.runtime.connection.address.check_reachable", lambda address: None)
    with pytest.raises(ResourceError), connected(address):
        pass
    assert joined == [f"{host}:6001"]


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


class Process:
    """Stands in for a process of Ray: a socket that greets, and closes when the process dies."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)
        self._socket.listen()
        self.address = self._socket.getsockname()

    def welcome(self) -> socket.socket:
        accepted = self._socket.accept()[0]
        accepted.sendall(b"greetings")
        return accepted

    def die(self) -> None:
        self._socket.close()


def test_a_session_notices_that_the_raylet_died_and_ends_what_waits_for_it(tmp_path: Path) -> None:
    raylet, head = Process(str(tmp_path / "raylet")), Process(("127.0.0.1", 0))
    session = RaySession(raylet.address, head.address, head_patience_s=0.0)
    assert session._probe(0.0) is None
    connection = raylet.welcome()
    head.welcome().close()  # as a gRPC server does to whoever says nothing
    assert session._probe(0.0) is None
    session.check()
    with pytest.raises(ZeroDivisionError), session.explaining():  # nothing to do with Ray
        raise ZeroDivisionError
    connection.close()
    raylet.die()
    with pytest.raises(ClusterLost, match=r"raylet.* has died"), session.explaining():
        raise TrainingFailed("the actors are gone")
    with pytest.raises(ClusterLost, match=r"raylet\.out"):
        session.check()
    session.close()
    head.die()
    stopped = RaySession(raylet.address, head.address, head_patience_s=45.0)
    with pytest.raises(ClusterLost, match=r"ray stop"), stopped.explaining():
        raise TrainingFailed("the actors are gone")


def test_a_head_may_be_away_for_a_while_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, events = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    head = Process(("127.0.0.1", 0))
    session = RaySession(None, head.address, head_patience_s=45.0, on_event=events.append)

    def after(seconds: float) -> str | None:
        clock[0] += seconds
        return session._probe(45.0)

    assert after(0.0) is None
    head.welcome().close()
    head.die()
    assert after(1.0) is None
    assert after(40.0) is None
    assert len(events) == 1
    assert "does not answer: waiting 45 s" in events[0]
    head = Process(head.address)
    assert after(1.0) is None
    head.welcome().close()
    head.die()
    assert after(1.0) is None
    assert after(44.0) is None
    lost = after(1.0)
    assert lost is not None
    assert f"{head.address[0]}:{head.address[1]}" in lost
    session.close()


def test_a_process_that_cannot_stop_is_ended_with_the_reason_and_the_way_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maml_ray.runtime.connection.session.PROBE_INTERVAL_S", 0.0)
    monkeypatch.setattr("maml_ray.runtime.connection.session.EXIT_GRACE_S", 0.0)
    codes, ended = list[int](), threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("os._exit", end)
    note: Callable[[], str] = lambda: "\nresume it"  # noqa: E731
    session = RaySession(str(tmp_path / "nobody"), None, 0.0, exit_note=note)
    session.start()
    assert ended.wait(10.0)
    assert codes == [1]
    assert "raylet" in (said := capfd.readouterr().err)
    assert said.endswith("\nresume it\n")
    session.close()
