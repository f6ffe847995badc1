"""Every request is counted under its route; logs and metrics hold no secret."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from maml_ray.evaluation.agent import Agent
from maml_ray.monitoring.service_metrics import BATCH_SIZE, METRICS, ServiceMetrics
from maml_ray.serving.http.access import _digest
from maml_ray.serving.http.errors import ErrorMiddleware, public_path
from maml_ray.serving.http.instrumentation import AccessLog, route_of
from maml_ray.serving.served_policy import new_policy_name
from tests.serving.local_service import backend_of, served
from tests.small_runs import agent_of, settings

TOKEN = "0123456789abcdef0123456789abcdef"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and values of labels, as Prometheus's own client reads them."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    answer = requests.get(f"{url}/metrics", timeout=DEADLINE_S)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


def post(url: str, path: str, body: Any, **headers: str) -> requests.Response:
    return requests.post(url + path, json=body, headers=headers, timeout=DEADLINE_S)


def test_requests_are_counted_by_route_and_status_with_their_durations(agent: Agent) -> None:
    observation = {"observations": [0.0] * agent.spec.observation_size}
    with served(backend_of(agent)) as url:
        for _ in range(3):
            assert post(url, "/act", observation).status_code == 200
        assert post(url, "/act", {"observations": "none"}).status_code == 422
        task = {"x": 0.1, "y": 0.1}
        adapted = post(url, "/adapt", {"task": task, "episodes": 1, "measured_episodes": 0})
        for path in (f"/policy/{new_policy_name()}", "/policy/a/policy.json", "/a/b", "/c"):
            assert requests.get(url + path, timeout=DEADLINE_S).status_code == 404
        found = scraped(url)
    name = "maml_ray_serve_requests_total"
    counts = {labels: value for (each, labels), value in found.items() if each == name}
    assert counts == {
        ("/act", "200"): 3.0,
        ("/act", "422"): 1.0,
        ("/adapt", str(adapted.status_code)): 1.0,
        ("/policy/NAME", "404"): 1.0,
        ("/policy/NAME/policy.json", "404"): 1.0,
        ("other", "404"): 2.0,
    }
    assert found["maml_ray_serve_request_seconds_count", ("/act",)] == 4.0
    assert 0.0 < found["maml_ray_serve_request_seconds_sum", ("/act",)] < DEADLINE_S
    assert found["maml_ray_serve_open_requests", ("/act",)] == 0.0
    assert found["maml_ray_serve_open_requests", ("/metrics",)] == 1.0  # this one


def test_a_request_is_open_until_it_is_answered(agent: Agent) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()
    backend = backend_of(agent)

    async def slow_warnings() -> list[str]:
        is_asked.set()
        while not may_answer.is_set():
            await asyncio.sleep(0.01)
        return []

    with served(replace(backend, storage_warnings=slow_warnings)) as url:
        caller = threading.Thread(target=lambda: requests.get(f"{url}/healthz", timeout=DEADLINE_S))
        caller.start()
        assert is_asked.wait(DEADLINE_S)
        assert scraped(url)["maml_ray_serve_open_requests", ("/healthz",)] == 1.0
        may_answer.set()
        caller.join(DEADLINE_S)
        assert scraped(url)["maml_ray_serve_open_requests", ("/healthz",)] == 0.0


def test_metrics_need_no_token_and_count_what_is_refused_for_want_of_one(agent: Agent) -> None:
    with served(backend_of(agent), token_digest=_digest(TOKEN.encode())) as url:
        assert post(url, "/act", {}).status_code == 401
        found = scraped(url)
    assert found["maml_ray_serve_requests_total", ("/act", "401")] == 1.0


def test_the_routes_are_few_whatever_is_asked_for() -> None:
    paths = ["/act", "/policy/a", "/policy/a/policy.json", "/policy/", "", "/x/policy/a", "//act"]
    assert [route_of(path) for path in paths] == [
        "/act",
        "/policy/NAME",
        "/policy/NAME/policy.json",
        "/policy/NAME",
        "other",
        "other",
        "other",
    ]


def test_all_metrics_are_exported_as_what_they_are_and_histograms_add_up() -> None:
    metrics = ServiceMetrics()
    metrics.request_started("/act")
    metrics.request_ended("/act", 200, 0.003)
    for size in (1, 3, 64, 1000):
        metrics.batch_answered(size)
    families = {one.name: one for one in text_string_to_metric_families(metrics.text.decode())}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation == f"{metric.meaning} ({metric.unit})"
    found = samples(metrics.text.decode())
    sizes = np.array([1, 3, 64, 1000])
    for bound in BATCH_SIZE.buckets:
        expected = (sizes <= bound).sum()
        assert found[f"{BATCH_SIZE.name}_bucket", (str(bound),)] == expected
    assert found[f"{BATCH_SIZE.name}_sum", ()] == sizes.sum()


@contextmanager
def logged_service(agent: Agent, lines: list[str]) -> Iterator[str]:
    log = AccessLog(lines.append)
    with served(backend_of(agent), access_log=log, token_digest=_digest(TOKEN.encode())) as url:
        yield url
    log.close()


def test_the_access_log_has_a_line_of_json_for_each_request_and_no_secret(agent: Agent) -> None:
    lines: list[str] = []
    secret = new_policy_name()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with logged_service(agent, lines) as url:
        answer = post(
            url, "/act", {"observations": [0.125] * agent.spec.observation_size}, **headers
        )
        for path in (
            f"/policy/{secret}/policy.json?token={TOKEN}",
            f"/%61dapted-{secret[8:]}",
            "/a%0Ab%1B[2J",
        ):
            requests.get(url + path, headers=headers, timeout=DEADLINE_S)
        requests.get(f"{url}/policy/base", timeout=DEADLINE_S)
    entries = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") and line.count("\n") == 1 and line.isascii() for line in lines)
    assert [(one["method"], one["path"], one["status"]) for one in entries] == [
        ("POST", "/act", 200),
        ("GET", f"/policy/{secret[:20]}.../policy.json", 404),
        ("GET", f"/{secret[:20]}...", 404),
        ("GET", "/a\nb\x1b[2J", 404),
        ("GET", "/policy/base", 401),
    ]
    assert entries[0]["bytes"] == len(answer.content)
    assert all(one["client"] == "127.0.0.1" and one["ms"] > 0.0 for one in entries)
    text = "".join(lines)
    for word in (TOKEN, secret, secret[20:], "0.125", "\x1b"):
        assert word not in text


def test_what_is_logged_of_a_path_is_short_and_no_capability() -> None:
    name = new_policy_name()
    assert public_path(f"/policy/{name}") == f"/policy/{name[:20]}..."
    assert name[20:30] not in public_path(f"/{name}/{name}")
    assert len(public_path("/" + "a" * 10_000)) == 200


def test_the_log_of_a_defect_has_one_line_and_no_capability(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a defect")

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        pass

    name = new_policy_name()
    scope = {"type": "http", "method": "GET", "path": f"/policy/{name}\nGET /forged"}
    asyncio.run(ErrorMiddleware(broken)(scope, receive, send))
    (record,) = caplog.records
    assert record.getMessage() == f"GET /policy/{name[:20]}...\\nGET /forged failed"


def test_a_log_that_is_not_taken_delays_no_request_and_says_what_it_left_out() -> None:
    lines: list[str] = []
    may_write, is_writing = threading.Event(), threading.Event()

    def write(line: str) -> None:
        is_writing.set()
        assert may_write.wait(DEADLINE_S)
        lines.append(line)

    log = AccessLog(write)
    scope = {"method": "GET", "path": "/healthz", "client": None}
    log.add(scope, 200, 0.001, 10)
    assert is_writing.wait(DEADLINE_S)  # the first line has left the queue
    for _ in range(10_005):
        log.add(scope, 200, 0.001, 10)
    may_write.set()
    log.close()
    left_out = [entry for line in lines if "requests_left_out" in (entry := json.loads(line))]
    assert [entry["requests_left_out"] for entry in left_out] == [5]
    assert len(lines) == 10_002


def test_a_closed_output_ends_the_log_and_not_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(line: str) -> None:
        raise BrokenPipeError("nobody reads")

    log = AccessLog(write)
    for _ in range(3):
        log.add({"method": "GET", "path": "/", "client": ("::1", 1)}, 200, 0.001, 10)
    log.close()
    (record,) = caplog.records
    assert "nobody reads" in record.getMessage()
