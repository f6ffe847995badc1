"""A real service that receives real signals answers what it has begun, and then exits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import requests

from tests.small_runs import run_of, settings

DEADLINE_S = 120.0
OBSERVATION: Any = {"observations": [0.0] * 17}
LONG: Any = {"task": {"direction": -1}, "measured_episodes": 30_000}
"""A request to adapt which takes minutes."""
SHORT: Any = {"task": {"direction": -1}, "measured_episodes": 100}


@dataclass
class Service:
    """A running service, with its output line by line."""

    process: subprocess.Popen[str]
    output: Queue[str]
    url: str
    run: Path

    def wait_for(self, words: str) -> str:
        """Return the next line of the output that contains ``words``."""
        while True:
            try:
                line = self.output.get(timeout=DEADLINE_S)
            except Empty:
                raise AssertionError(f"no line with {words!r}") from None
            if words in line:
                return line

    def workers(self) -> list[int]:
        """Return the ids of the service's processes besides its own."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def connect(self) -> HTTPConnection:
        host, port = self.url.removeprefix("http://").split(":")
        return HTTPConnection(host, int(port), timeout=DEADLINE_S)

    def wait_until_open(self, route: str) -> None:
        """Wait until a request to ``route`` is in progress."""
        pattern = rf'maml_ray_serve_open_requests{{route="{route}"}} [1-9]'
        pause = threading.Event()
        for _ in range(round(DEADLINE_S / 0.02)):
            if re.search(pattern, requests.get(f"{self.url}/metrics", timeout=DEADLINE_S).text):
                return
            pause.wait(0.02)
        raise AssertionError(f"no request to {route} was seen")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = settings("half-cheetah-direction", policy={"action_scale": 1.0})
    return run_of(chosen, tmp_path_factory.mktemp("stop") / "run").path


@contextmanager
def serving(run: Path, stop_timeout_s: float = DEADLINE_S) -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "maml_ray", "serve", str(run), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--set", f"stop_timeout_s={stop_timeout_s}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    output: Queue[str] = Queue()
    stdout = process.stdout
    assert stdout is not None
    threading.Thread(target=lambda: deque(map(output.put, stdout)), daemon=True).start()
    try:
        service = Service(process, output, f"http://127.0.0.1:{port}", run)
        service.wait_for("stop with Ctrl-C")
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)


def send(connection: HTTPConnection, path: str, body: Any) -> None:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})


def answer(connection: HTTPConnection) -> tuple[HTTPResponse, Any]:
    response = connection.getresponse()
    return response, json.loads(response.read())


def policy_files(service: Service, name: str) -> list[bytes]:
    urls = [f"{service.url}/policy/{name}{suffix}" for suffix in ("", "/policy.json")]
    answers = [requests.get(url, timeout=DEADLINE_S) for url in urls]
    assert [each.status_code for each in answers] == [200, 200]
    return [each.content for each in answers]


def assert_gone(pids: list[int]) -> None:
    """Wait until processes have ended."""
    pause = threading.Event()
    for _ in range(round(DEADLINE_S / 4 / 0.02)):
        if not any(_is_running(pid) for pid in pids):
            return
        pause.wait(0.02)
    raise AssertionError(f"of {pids} some still run")


def _is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


class Caller(threading.Thread):
    """Sends a request after each answer, until an answer says that the connection closes."""

    def __init__(self, service: Service, has_begun: threading.Event) -> None:
        super().__init__(daemon=True)
        self._service, self._has_begun = service, has_begun
        self.statuses: list[int] = []
        self.unanswered: list[Exception] = []

    def run(self) -> None:
        connection = self._service.connect()
        try:
            while True:
                send(connection, "/act", OBSERVATION)
                response, _ = answer(connection)
                self.statuses.append(response.status)
                if len(self.statuses) == 20:
                    self._has_begun.set()
                if response.getheader("connection") == "close":
                    return
        except Exception as error:  # the request that was sent has no answer
            self.unanswered.append(error)


def test_a_killed_service_keeps_its_policies_and_a_stopped_one_answers_what_it_has_begun(
    run: Path,
) -> None:
    with serving(run) as service:
        adapted = requests.post(f"{service.url}/adapt", json=SHORT, timeout=DEADLINE_S).json()
        files = policy_files(service, adapted["policy"])
        service.process.kill()
        service.process.wait(DEADLINE_S)
    with serving(run) as service:
        assert policy_files(service, adapted["policy"]) == files
        adapting = service.connect()
        send(adapting, "/adapt", SHORT | {"policy": adapted["policy"]})
        service.wait_until_open("/adapt")
        begun = [threading.Event() for _ in range(16)]
        callers = [Caller(service, event) for event in begun]
        for caller in callers:
            caller.start()
        assert all(event.wait(DEADLINE_S) for event in begun)
        service.process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join(DEADLINE_S)
        assert [caller.unanswered for caller in callers] == [[]] * 16
        assert {status for caller in callers for status in caller.statuses} == {200}
        response, content = answer(adapting)
        assert (response.status, content["adapted_from"]) == (200, adapted["policy"])
        assert service.process.wait(DEADLINE_S) == 128 + signal.SIGTERM
        assert (run / "served" / content["policy"] / "policy.json").is_file()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{service.url}/healthz", timeout=DEADLINE_S)


def test_a_second_signal_ends_it_at_once(run: Path) -> None:
    with serving(run) as service:
        requests.post(f"{service.url}/adapt", json=SHORT, timeout=DEADLINE_S)  # the worker is ready
        adapting = service.connect()
        send(adapting, "/adapt", LONG)
        service.wait_until_open("/adapt")
        os.killpg(service.process.pid, signal.SIGINT)  # as Ctrl-C does
        assert "stopping: 1 requests in progress" in service.wait_for("stopping")
        workers = service.workers()
        assert workers
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(DEADLINE_S / 4) == 128 + signal.SIGINT
    assert_gone(workers)


def test_what_takes_too_long_is_told_to_try_again(run: Path) -> None:
    with serving(run, stop_timeout_s=0.5) as service:
        adapting = service.connect()
        send(adapting, "/adapt", LONG)
        service.wait_until_open("/adapt")
        service.process.send_signal(signal.SIGTERM)
        response, content = answer(adapting)
        assert (response.status, response.getheader("retry-after")) == (503, "1")
        assert "stops" in content["error"]
        assert service.process.wait(DEADLINE_S) == 128 + signal.SIGTERM
