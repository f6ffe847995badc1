"""A node of the manifests' Ray listens where the NetworkPolicies expect it, and nowhere else."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cluster.kubernetes import KUBECTL, build_one, ray_cluster
from tests.cluster.network_rules import reaches
from tests.cluster.test_network_policies import CLIENT, HEAD, OTHERS, ROLLOUTS, endpoint, policies
from tests.ports import listening_ports

pytestmark = [
    pytest.mark.runs_alone,
    pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed"),
]

RAY = str(Path(sys.executable).parent / "ray")
METRICS = {"AUTOSCALER_METRIC_PORT": 44217, "DASHBOARD_METRIC_PORT": 44227}
DEADLINE_S = 120.0
TASK = """
import ray
ray.init(log_to_driver=False)
print(ray.get(ray.remote(lambda: 1).remote()))
"""


def parameters() -> dict[str, str]:
    """Return those of the manifest, and those that KubeRay and Ray add to a head."""
    added = {"port": "6379", "dashboard-port": "8265", "ray-client-server-port": str(CLIENT)}
    group = ray_cluster(build_one("raycluster", "RayCluster"))["headGroupSpec"]
    return {**added, **group["rayStartParams"], "dashboard-host": "0.0.0.0", "num-cpus": "1"}


def free_shift() -> int:
    """Return by how much to move all ports, so that no other Ray here is in the way."""
    ports = [int(value) for key, value in parameters().items() if key.endswith("port")]
    for shift in range(2_000, 10_000, 500):
        try:
            for port in (*ports, *METRICS.values()):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", port + shift))
        except OSError:
            continue
        return shift
    pytest.skip("other programs of this machine have the ports")


@contextmanager
def head(shift: int) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Start a head with its ports moved; yield its process and what a driver needs."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        moved = {
            key: str(int(value) + shift) if key.endswith("port") else value
            for key, value in parameters().items()
        }
        environment = {
            **os.environ,
            **{name: str(port + shift) for name, port in METRICS.items()},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{moved['port']}",
        }
        options = [f"--{key}={value}" for key, value in moved.items()]
        command = [RAY, "start", "--head", "--block", "--disable-usage-stats", *options]
        with (Path(folder) / "log").open("wb") as log:
            started = subprocess.Popen(
                [*command, f"--temp-dir={folder}"], env=environment, stdout=log, stderr=log
            )
        process = psutil.Process(started.pid)
        try:
            yield process, environment
        finally:
            everything = [process, *process.children(recursive=True)]
            for each in everything:
                each.terminate()
            for each in psutil.wait_procs(everything, timeout=30)[1]:
                each.kill()
            started.wait(timeout=30)


def open_ports(process: psutil.Process, shift: int) -> set[int]:
    """Return the ports that other machines reach, as they were before the shift."""
    ports = listening_ports(process.pid)
    return {port - shift for port, is_reachable in ports.items() if is_reachable}


def test_a_head_opens_only_ports_that_the_policies_know() -> None:
    shift = free_shift()
    known = {int(value) for key, value in parameters().items() if key.endswith("port")}
    named = known - {10002, 19999} | set(METRICS.values())
    with head(shift) as (process, environment):
        deadline = time.monotonic() + DEADLINE_S
        found: set[int] = set()
        while not named <= found and time.monotonic() < deadline:
            assert process.status() != psutil.STATUS_ZOMBIE
            time.sleep(0.5)
            found = open_ports(process, shift)
        assert named <= found
        driver = [sys.executable, "-c", TASK]
        done = subprocess.run(
            driver, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.stdout == "1\n", done.stderr
        found = open_ports(process, shift)
    others = found - named
    assert all(10002 <= port <= 19999 for port in others)  # those of the workers
    there, node = endpoint(HEAD), endpoint(ROLLOUTS)
    for port in found - {CLIENT}:
        by_nodes = reaches(policies(), node, there, port)
        assert by_nodes or reaches(policies(), OTHERS["prometheus"], there, port)
    for port in found:
        assert not reaches(policies(), OTHERS["stranger"], there, port)
