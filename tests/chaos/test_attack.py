"""A service under attack answers those who use it, and holds what it promises."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

import maml_ray
from tests.chaos.attack import Outcome, attack
from tests.small_runs import run_of, settings

START_S = 120.0
RECEIVE_TIMEOUT_S = 5
MAX_MEMORY_RATIO = 1.3
MAX_LINES = 20
"""Of the log: what it prints at the start, and not a line for each request."""


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Yield port and process of ``maml-ray serve``, whose adapter has answered once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "maml_ray", "serve", str(folder), "--port", str(port)]
    command += ["--set", f"receive_timeout_s={RECEIVE_TIMEOUT_S}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    urlopen(f"http://127.0.0.1:{port}/healthz", timeout=START_S).close()
                    break
                except URLError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield port, psutil.Process(process.pid)
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
            process.wait(START_S)


def check(outcome: Outcome, log: Path) -> None:
    lines = log.read_text().splitlines()
    print(f"\n{outcome.table()}\nlines of the log: {len(lines)}")
    assert not outcome.wrong, outcome.wrong[:5]
    statuses = {status for _, status in outcome.statuses}
    assert not [status for status in statuses if status.startswith("5") and status != "503"]
    assert {status for who, status in outcome.statuses if who == "GET /healthz"} == {"200"}
    for kind, status in (
        ("half sent", "408"),
        ("large", "413"),
        ("large", "503"),
        ("invalid", "415"),
        ("invalid", "421"),
        ("invalid", "431"),
    ):
        assert outcome.statuses[kind, status], (kind, status)
    assert outcome.max_bytes <= MAX_MEMORY_RATIO * outcome.idle_bytes
    assert outcome.statuses["hanging up", "hung up"] > MAX_LINES
    assert len(lines) <= MAX_LINES, lines
    assert outcome.statuses["client", "200"] > outcome.statuses["client", "503"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = settings("half-cheetah-direction", policy={"action_scale": 1.0})
    return run_of(chosen, tmp_path_factory.mktemp("attacked") / "run").path


def attacked(folder: Path, log: Path, seconds: float) -> None:
    agent = maml_ray.load(folder)
    with serving(folder, log) as (port, process):
        outcome = attack(port, process, agent.act, seconds)
    check(outcome, log)


@pytest.mark.runs_alone
def test_a_service_under_attack_serves_its_clients(folder: Path, tmp_path: Path) -> None:
    attacked(folder, tmp_path / "log", 20.0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_service_withstands_ten_minutes_of_attack(folder: Path, tmp_path: Path) -> None:
    attacked(folder, tmp_path / "log", 600.0)
