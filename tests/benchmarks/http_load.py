"""Load an HTTP server from a process of its own, with ``wrk`` or, without it, with Python.

Each client keeps one connection open and sends its next request once the previous one is answered.
The request is prepared beforehand, so that the client costs as little as it can of the CPUs that
the server uses too.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

_PATIENCE_S = 60.0
_WRK_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
wrk.body = file:read("*a")
file:close()
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max, failed))
end
"""


@dataclass(frozen=True)
class Load:
    """What the clients saw of one measurement.

    Attributes:
        requests_per_s: answered requests, of all clients together.
        p50_ms, p99_ms, max_ms: percentiles of the time from a request to its answer.
        errors: connections that failed, and answers other than 2xx and 3xx.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int


@dataclass(frozen=True)
class Payload:
    """A body to send with POST."""

    content_type: str
    body: bytes


def client_name() -> str:
    """Return the name of the client that :func:`load` uses on this machine."""
    return "wrk" if shutil.which("wrk") else f"Python {sys.version.split()[0]}, asyncio"


def load(url: str, payload: Payload, *, clients: int, seconds: float) -> Load:
    """Send requests for some seconds and return what the clients saw.

    Args:
        url: where to send them.
        payload: what to send.
        clients: number of connections.
        seconds: duration; ``wrk`` rounds it up to whole seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(payload.body)
        measure = _with_wrk if shutil.which("wrk") else _with_python
        return measure(url, body, payload.content_type, clients, seconds)


def _with_wrk(url: str, body: Path, content_type: str, clients: int, seconds: float) -> Load:
    script = body.with_name("request.lua")
    script.write_text(
        _WRK_SCRIPT.replace("{body}", str(body)).replace("{content_type}", content_type)
    )
    duration = f"{int(np.ceil(seconds))}s"
    command = ["wrk", "-t1", f"-c{clients}", f"-d{duration}", "--timeout", "30s"]
    output = _run([*command, "-s", str(script), url], seconds)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", output)
    assert found is not None, output
    requests, microseconds, p50, p99, slowest, errors = map(int, found.groups())
    rate = 1e6 * requests / microseconds
    return Load(rate, p50 / 1000, p99 / 1000, slowest / 1000, errors)


def _with_python(url: str, body: Path, content_type: str, clients: int, seconds: float) -> Load:
    arguments = [url, str(body), content_type, str(clients), str(seconds)]
    command = [sys.executable, "-m", "tests.benchmarks.http_load", *arguments]
    return Load(**json.loads(_run(command, seconds)))


def _run(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + _PATIENCE_S, check=False
    )
    if done.returncode:
        sys.exit(f"the client failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


class _Client(asyncio.Protocol):
    """One connection that sends the same request again and again.

    Args:
        request: the whole request, with its headers.
        until: when to send no more, of ``time.perf_counter``.
        latencies: seconds of each answered request are appended to it.
    """

    def __init__(self, request: bytes, until: float, latencies: list[float]) -> None:
        self._request, self._until, self._latencies = request, until, latencies
        self._received, self._size, self._sent_at = b"", 0, 0.0
        self.errors = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if not self._size:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            lengths = re.findall(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            self._size = len(head) + len(end) + int(lengths[0])
        if len(self._received) < self._size:
            return
        now = time.perf_counter()
        self._latencies.append(now - self._sent_at)
        self.errors += self._received[9:10] not in (b"2", b"3")
        self._received, self._size = b"", 0
        if now < self._until:
            self._send()
        else:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.errors += 1
            self._end()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _end(self) -> None:
        self.ended.set_result(None)
        self._transport.close()


async def _load(url: str, payload: Payload, clients: int, seconds: float) -> Load:
    parts = urlsplit(url)
    request = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: {payload.content_type}\r\nContent-Length: {len(payload.body)}\r\n\r\n"
    ).encode() + payload.body
    latencies: list[float] = []
    start = time.perf_counter()

    def client() -> _Client:
        return _Client(request, start + seconds, latencies)

    loop = asyncio.get_running_loop()
    host, port = str(parts.hostname), parts.port or 80
    pairs = [await loop.create_connection(client, host, port) for _ in range(clients)]
    await asyncio.wait_for(
        asyncio.gather(*(protocol.ended for _, protocol in pairs)), seconds + _PATIENCE_S / 2
    )
    taken = time.perf_counter() - start
    p50, p99, slowest = 1000.0 * np.percentile(latencies or [np.nan], [50, 99, 100])
    errors = sum(protocol.errors for _, protocol in pairs)
    return Load(len(latencies) / taken, float(p50), float(p99), float(slowest), errors)


def _main(url: str, body: str, content_type: str, clients: str, seconds: str) -> None:
    payload = Payload(content_type, Path(body).read_bytes())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(_load(url, payload, int(clients), float(seconds))))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
