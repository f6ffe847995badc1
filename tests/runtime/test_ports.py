"""The Ray that a run starts for itself listens on this machine's loopback only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ports import listening_ports

# Alone: some of the ports are fixed, so that only one Ray of a machine has them.
pytestmark = [pytest.mark.ray, pytest.mark.runs_alone]
DEADLINE_S = 150.0
PORTS = 12
"""As many as a head opens before any actor runs; see the table in docs/cluster.md."""
LOCAL = """
import ray
from maml_ray.runtime.connection.connect import connected
with connected(None):
    print(ray.get_runtime_context().gcs_address, flush=True)
    input()
"""


def test_the_ray_of_one_machine_listens_on_loopback_only_and_is_joined_there(
    tmp_path: Path,
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-c", LOCAL],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert program.stdout is not None
            address = program.stdout.readline().decode().strip()
            assert address.startswith("127.0.0.1:"), (tmp_path / "log").read_text()
            deadline = time.monotonic() + DEADLINE_S
            found: dict[int, bool] = {}
            while len(found) < PORTS:
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
                found = listening_ports(program.pid)
            assert not any(found.values()), found
            status = [sys.executable, "-m", "maml_ray", "status", "--address", address, "--json"]
            joined = subprocess.run(
                status,
                env={**environment, "RAY_AUTH_MODE": "token"},
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )
            assert joined.returncode == 0, joined.stderr
        finally:
            program.communicate(b"\n", timeout=60)
