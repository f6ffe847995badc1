"""The Ray that a run starts for itself listens on this machine's loopback only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ports import listening_ports

pytestmark = pytest.mark.ray
DEADLINE_S = 150.0
PORTS = 12
"""As many as a head opens before any actor runs; see the table in docs/cluster.md."""
LOCAL = """
from maml_ray.runtime.connection.connect import connected
with connected(None):
    print("ready", flush=True)
    input()
"""


def test_the_ray_of_one_machine_listens_on_loopback_only(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-c", LOCAL],
            env={**environment, "HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n", (tmp_path / "log").read_text()
            deadline = time.monotonic() + DEADLINE_S
            found: dict[int, bool] = {}
            while len(found) < PORTS:
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
                found = listening_ports(program.pid)
            assert not any(found.values()), found
        finally:
            program.communicate(b"\n", timeout=60)
