"""The benchmark of the service: its client counts right, and its ratios are those of one round."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.benchmarks import http_load
from tests.benchmarks.http_load import Load, Payload, load
from tests.benchmarks.serving import Series, ServingResult, describe
from tests.serving.local_service import running


class CountingServer:
    """An ASGI application that counts requests and fails each third one."""

    def __init__(self) -> None:
        self.bodies: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.bodies.append((dict(scope["headers"])[b"content-type"], body))
        status = 500 if len(self.bodies) % 3 == 0 else 200
        headers = [(b"content-length", b"3")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"yes"})


@pytest.mark.parametrize("program", ["wrk", "Python"])
def test_the_client_sends_the_payload_and_counts_answers_and_errors(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    if program == "wrk" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    if program == "Python":
        monkeypatch.setattr("shutil.which", lambda name: None)
    payload, server = Payload("application/octet-stream", bytes(range(256))), CountingServer()
    with running(server) as url:
        found = load(f"{url}/act", payload, clients=4, seconds=1)
    assert http_load.client_name().startswith(program)
    assert set(server.bodies) == {(b"application/octet-stream", bytes(range(256)))}
    # wrk does not count the requests that are in flight at the end.
    answered = len(server.bodies)
    assert 0 <= answered // 3 - found.errors <= 4
    assert found.requests_per_s < answered
    assert 0.0 < found.p50_ms <= found.p99_ms <= found.max_ms


def test_ratios_are_of_the_loads_of_one_round() -> None:
    def loads(*rates: float) -> list[Load]:
        return [Load(rate, 1e3 / rate, 2e3 / rate, 5e3 / rate, 0) for rate in rates]

    series = [
        Series("one machine", payload, clients, loads(*ours), loads(100.0, 200.0))
        for payload, ours in (("JSON", (50.0, 100.0)), ("binary", (75.0, 150.0)))
        for clients in (1, 64)
    ]
    adapting = Series("one machine, adapting", "JSON", 1, loads(25.0, 50.0), loads(50.0, 100.0))
    result = ServingResult("wrk", 3, series, adapting, [700.0], {"Ray Serve": "no"})
    medians = {name: ratio.median for name, ratio in result.ratios().items()}
    assert medians["one machine, 64 clients, JSON: requests/s, of the echo's"] == 0.5
    assert medians["one machine, 64 clients: requests/s, binary to JSON"] == 1.5
    assert medians["one machine, 1 client, JSON: median latency, idle to adapting"] == 0.5
    lines = list(describe(result))
    assert any("bare echo, 64 clients, JSON" in line and " 150 " in line for line in lines)
    assert any("target 0.67" in line for line in lines)
    assert "  Ray Serve: not measured: no" in lines
