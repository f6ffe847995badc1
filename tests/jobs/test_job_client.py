"""The job server's client, against an HTTP server that remembers what it was asked. No Ray."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from maml_ray.common.errors import ResourceError
from maml_ray.jobs import job_client, packaging


class Head(http.server.ThreadingHTTPServer):
    """A cluster's head, as far as a submission sees it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, bytes]] = []
        self.refuse: int | None = None
        self.hang = threading.Event()
        self.hang.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def body_of(self, method: str, path: str) -> bytes:
        (found,) = [b for m, p, b in self.asked if m == method and p.startswith(path)]
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Head

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        self.server.hang.wait(10.0)
        code, answer = self._answer()
        content = json.dumps(answer).encode()
        self.send_response(self.server.refuse or code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _do

    def _answer(self) -> tuple[int, Any]:
        if self.path == "/api/version":
            return 200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}
        if self.path.startswith("/api/packages") and self.command == "GET":
            return 404, {}
        if self.path.startswith("/api/v0/nodes"):
            nodes = [
                {"state": "ALIVE", "resources_total": {"CPU": 2.0, "GPU": 1.0}},
                {"state": "ALIVE", "resources_total": {"CPU": 3.0}},
                {"state": "DEAD", "resources_total": {"CPU": 64.0}},
            ]
            return 200, {"result": True, "data": {"result": {"result": nodes}}}
        return 200, {"submission_id": "a-1", "job_id": None}

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and so back to what it was, whatever is set meanwhile
    server = Head()
    yield server
    server.hang.set()
    server.shutdown()
    server.server_close()


def test_a_job_is_sent_with_its_files_requirements_and_metadata(
    head: Head, capfd: pytest.CaptureFixture[str]
) -> None:
    files = packaging.job_upload("run: {name: a}\n", None)
    request = job_client.JobRequest(
        "python -m maml_ray train x", files, ("numpy==1",), {"run": "a", "version": "0.1.0"}
    )
    job_client.JobClient(head.address).submit(request, "a-1")
    sent = json.loads(head.body_of("POST", "/api/jobs/"))
    assert sent["entrypoint"] == "python -m maml_ray train x"
    assert sent["submission_id"] == "a-1"
    assert sent["metadata"] == {"run": "a", "version": "0.1.0"}
    environment = sent["runtime_env"]
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert environment["pip"]["packages"] == ["numpy==1"]
    assert environment["config"]["setup_timeout_seconds"] == 1800
    assert environment["working_dir"].startswith("gcs://")
    # The driver takes nothing: a GPU for it would be one less for the learner.
    assert not [key for key in sent if key.startswith("entrypoint_") and sent[key]]
    with zipfile.ZipFile(io.BytesIO(head.body_of("PUT", "/api/packages/"))) as archive:
        assert set(archive.namelist()) == set(files.sizes)
        assert archive.read(packaging.SETTINGS_FILE) == b"run: {name: a}\n"
    assert capfd.readouterr().err == ""  # Ray's own remarks on packages are left out


def test_nodes_that_have_everything_install_nothing(head: Head) -> None:
    request = job_client.JobRequest("true", packaging.job_upload("", None))
    job_client.JobClient(head.address).submit(request, "a-1")
    assert "pip" not in json.loads(head.body_of("POST", "/api/jobs/"))["runtime_env"]


def test_the_address_that_is_given_wins_over_the_environment_s(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert job_client.JobClient(head.address).ray_version == "2.60.0"


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
@pytest.mark.parametrize("stale", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_stale_variable_is_refused_within_seconds_and_named(
    head: Head, monkeypatch: pytest.MonkeyPatch, variable: str, stale: str
) -> None:
    monkeypatch.setattr("maml_ray.runtime.connection.address.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv(variable, stale)
    with pytest.raises(ResourceError) as caught:
        job_client.JobClient(None)
    assert all(word in str(caught.value) for word in (stale, variable, "answers at"))


def test_a_cluster_that_has_gone_from_this_machine_is_refused_within_seconds(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.runtime.connection.address.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(
        "maml_ray.runtime.connection.address.find_running_cluster", lambda: "127.0.0.1:1"
    )
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at .*ray start"):
        job_client.JobClient(None)


def test_what_the_living_nodes_have_is_added_up(head: Head) -> None:
    assert job_client.JobClient(head.address).resources() == {"CPU": 5.0, "GPU": 1.0}


def test_a_server_that_does_not_answer_is_given_up(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_client, "_REQUEST_TIMEOUT_S", 0.2)
    head.hang.clear()
    with pytest.raises(ResourceError, match=r"no job server answers at 'http://.*timed out"):
        job_client.JobClient(head.address)


def test_nobody_there_a_token_that_is_wanted_and_a_refusal_are_told_apart(head: Head) -> None:
    with pytest.raises(ResourceError, match=r"no job server answers at 'http://127\.0\.0\.1:1'"):
        job_client.JobClient("http://127.0.0.1:1")
    server = job_client.JobClient(head.address)
    head.refuse = 500
    with pytest.raises(ResourceError, match=r"refused the request: .* status code 500"):
        server.job_info("a-1")
    head.refuse = 401
    with pytest.raises(ResourceError, match="requires a token: set RAY_AUTH_MODE=token"):
        server.job_info("a-1")
