"""The service end to end: the command, Ray Serve, real HTTP, Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import orjson
import pytest
import requests

import maml_ray
from maml_ray.evaluation.agent import Agent
from maml_ray.serving.http.access import TOKEN_VARIABLE
from tests.serving.bodies import body_of
from tests.small_runs import run_of, settings

pytestmark = pytest.mark.ray
TOKEN = "0123456789abcdef0123456789abcdef"
START_S, STOP_S = 180.0, 60.0


@dataclass
class Served:
    """A running service: its process, output, URL and agent."""

    process: subprocess.Popen[str]
    lines: list[str]
    url: str
    agent: Agent

    def post(self, path: str, body: Any) -> requests.Response:
        content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return requests.post(self.url + path, data=content, headers=headers, timeout=60)

    def get(self, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(self.url + path, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    chosen = settings("half-cheetah-direction", policy={"action_scale": 1.0})
    folder = run_of(chosen, tmp_path_factory.mktemp("serving") / "run").path
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "maml_ray", "serve", str(folder), "--ray", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, TOKEN_VARIABLE: TOKEN},
        start_new_session=True,
    )
    try:
        lines = _wait_for(process, "stop with Ctrl-C")
        yield Served(process, lines, f"http://127.0.0.1:{port}", maml_ray.load(folder))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_S)


def _wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Return the output up to the line that starts with ``word``."""
    assert process.stdout is not None
    queue: Queue[str] = Queue()
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            queue.put(line)

    threading.Thread(target=read, daemon=True).start()
    lines: list[str] = []
    deadline = time.monotonic() + START_S
    while not (lines and lines[-1].startswith(word)):
        try:
            lines.append(queue.get(timeout=1.0))
        except Empty:
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
    return lines


def test_it_acts_as_the_agent_does_and_shares_batches(served: Served) -> None:
    observations = np.random.default_rng(0).standard_normal((40, 17)).astype(np.float32)
    one = served.post("/act", {"observations": observations})
    np.testing.assert_array_equal(np.float32(one.json()["actions"]), served.agent.act(observations))
    with ThreadPoolExecutor(16) as callers:  # at once, each an observation of its own
        answers = list(
            callers.map(lambda row: served.post("/act", {"observations": row}), observations)
        )
    assert [answer.status_code for answer in answers] == [200] * 40
    np.testing.assert_allclose(
        np.array([answer.json()["actions"] for answer in answers], np.float32),
        served.agent.act(observations),
        rtol=1e-5,
        atol=1e-6,
    )


def test_it_adapts_to_a_callers_data_to_the_bit_and_publishes_the_policy(
    served: Served, tmp_path: Path
) -> None:
    support = served.agent.collect_support(seed=5)
    body = {"trajectories": body_of(served.agent, support)}
    response = served.post("/adapt", body)
    assert response.status_code == 200, response.text
    name = response.json()["policy"]
    (tmp_path / "parameters.safetensors").write_bytes(served.get(f"/policy/{name}").content)
    (tmp_path / "policy.json").write_bytes(served.get(f"/policy/{name}/policy.json").content)
    adapted = maml_ray.load(tmp_path)
    expected = served.agent.adapt(support)
    for parameter, value in expected.parameters.items():
        np.testing.assert_array_equal(adapted.parameters[parameter], value)
    seen = support.observations[0]
    acted = served.post("/act", {"observations": seen, "policy": name}).json()
    np.testing.assert_array_equal(np.float32(acted["actions"]), expected.act(seen))


def test_it_adapts_to_a_task_in_simulation(served: Served) -> None:
    answer = served.post("/adapt", {"task": {"direction": -1}, "steps": 2, "seed": 3}).json()
    assert answer["adapted_from"] == "checkpoint-1"
    assert len(answer["steps"]) == 2
    assert all(step["kl"] > 0.0 for step in answer["steps"])
    assert isinstance(answer["return_before"], float)


def test_errors_cross_the_processes_as_sentences(served: Served) -> None:
    for path, body, status, word in (
        ("/act", {"observations": [0.0]}, 422, "(n, 17)"),
        ("/act", {"observations": [0.0] * 17, "policy": "adapted-x"}, 404, "'adapted-x'"),
        ("/adapt", {"task": {"direction": 5}}, 422, "no such task"),  # found by the adapter
        ("/adapt", {"task": {"direction": 1}, "episodes": 10**6}, 422, "steps of simulation"),
    ):
        answer = served.post(path, body)
        assert (answer.status_code, word in answer.json()["error"]) == (status, True), answer.text
    large = requests.post(
        served.url + "/act",
        data=b" " * 16_000_001,
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        timeout=60,
    )
    assert large.status_code == 413


def test_it_requires_the_token_and_listens_only_on_loopback(served: Served) -> None:
    assert requests.post(served.url + "/act", data=b"{}", timeout=60).status_code == 401
    assert requests.get(served.url + "/healthz", timeout=60).json()["policy"] == "checkpoint-1"
    assert requests.get(served.url + "/openapi.json", timeout=60).status_code == 200
    assert any(served.url in line for line in served.lines)
    assert TOKEN not in "".join(served.lines)
    port = int(served.url.rpartition(":")[2])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port)}
    for address in addresses - {"127.0.0.1", "::1"}:
        if not str(address).startswith("127."):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((str(address), port), timeout=5).close()


def test_ctrl_c_ends_it_with_130(served: Served) -> None:
    """Must be the last test: it ends the service."""
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(STOP_S) == 130
    with pytest.raises(requests.ConnectionError):
        requests.get(served.url + "/healthz", timeout=5)
