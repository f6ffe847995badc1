"""``python -m tests.benchmarks.serving``: the service beside a bare echo on the same CPUs.

Serves an untrained policy of the default settings' size on this machine, whose CPUs the client
shares. Each request has one observation of 17 numbers, in JSON or in binary. The echo is a bare
ASGI application on the same server program: it sends the body back. Contenders are measured in
alternation with the echo: the service on one machine, and then the service through Ray Serve, with
Serve's own proxy and with HAProxy. The service that adapts meanwhile is measured in alternation
with the one that does not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.loading import validate_settings
from maml_ray.serving.served_policy import load_base_policy
from tests.benchmarks.arguments import count
from tests.benchmarks.http_load import Load, Payload, client_name, load
from tests.benchmarks.machine import machine
from tests.benchmarks.ratios import Ratio
from tests.ports import free_port
from tests.small_runs import run_of

OBSERVATION = [round(0.1 * i - 0.8, 1) for i in range(17)]
PAYLOADS = {
    "JSON": Payload("application/json", json.dumps({"observations": OBSERVATION}).encode()),
    "binary": Payload("application/octet-stream", np.array(OBSERVATION, "<f4").tobytes()),
}
CLIENTS = (1, 64)
ECHO, OURS, ADAPTING = "bare echo", "one machine", "one machine, adapting"
WITH_RAY = {"Ray Serve": {}, "Ray Serve, HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}
"""Contenders that run on Ray, and the environment of each."""
TARGETS = {
    "one machine, 64 clients, JSON: requests/s, of the echo's": 1 / 1.5,
    "one machine, 64 clients, binary: requests/s, of the echo's": 1 / 1.5,
    "one machine, 64 clients: requests/s, binary to JSON": 1.5,
}
"""Least ratios that the service is built for."""
SECONDS = 3
"""Duration of each measurement."""
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0


class ServiceError(Exception):
    """A contender does not start, or refuses what it is to be measured with."""


@dataclass(frozen=True)
class Series:
    """Loads of a contender and of what it was measured in alternation with, one per round."""

    contender: str
    payload: str
    clients: int
    loads: list[Load]
    reference: list[Load]

    @property
    def name(self) -> str:
        """Name of the row in the table."""
        return f"{self.contender}, {_clients(self.clients)}, {self.payload}"


@dataclass(frozen=True)
class ServingResult:
    """What the clients saw of every contender.

    Attributes:
        client: name of the client program.
        seconds: duration of each measurement.
        series: measured in alternation with the echo.
        adapting: measured in alternation with the same service while it does not adapt.
        adaptations_ms: duration of each adaptation during ``adapting``.
        absent: contenders that could not be measured, and why.
    """

    client: str
    seconds: int
    series: list[Series]
    adapting: Series
    adaptations_ms: list[float]
    absent: dict[str, str]

    def ratios(self) -> dict[str, Ratio]:
        """Return ratios by name; more is better."""
        found = {
            f"{each.name}: requests/s, of the echo's": Ratio.of(
                _values(each.loads, "requests_per_s") / _values(each.reference, "requests_per_s")
            )
            for each in self.series
        }
        ours = {
            (each.payload, each.clients): _values(each.loads, "requests_per_s")
            for each in self.series
            if each.contender == OURS
        }
        for clients in CLIENTS:
            name = f"{OURS}, {_clients(clients)}: requests/s, binary to JSON"
            found[name] = Ratio.of(ours["binary", clients] / ours["JSON", clients])
        for field, name in (("p50_ms", "median"), ("p99_ms", "99th percentile of")):
            found[f"{OURS}, 1 client, JSON: {name} latency, idle to adapting"] = Ratio.of(
                _values(self.adapting.reference, field) / _values(self.adapting.loads, field)
            )
        return found


def measure(rounds: int, seconds: int, *, with_ray: bool = True) -> ServingResult:
    """Measure every contender in alternation with the echo.

    Args:
        rounds: number of measurements of each row.
        seconds: duration of each measurement.
        with_ray: whether to measure the service through Ray Serve too.

    Raises:
        ServiceError: the echo or the service on one machine cannot be measured.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        run = run_of(
            validate_settings({"task": {"name": "half-cheetah-direction"}}), folder / "run"
        )
        with _echo(folder) as echo:
            with _service(run.path, folder) as url:
                series = _measure_beside(echo, OURS, url, rounds, seconds)
                adapting, adaptations_ms = _measure_adapting(run.path, url, rounds, seconds)
            absent = {}
            for contender, variables in WITH_RAY.items() if with_ray else ():
                try:
                    with _service(run.path, folder, "--ray", **variables) as url:
                        series += _measure_beside(echo, contender, url, rounds, seconds)
                except ServiceError as error:
                    absent[contender] = str(error)
    return ServingResult(client_name(), seconds, series, adapting, adaptations_ms, absent)


def describe(result: ServingResult) -> Iterator[str]:
    """Yield the table."""
    yield (
        "the service, one observation of 17 numbers per request; medians of "
        f"{len(result.adapting.loads)} rounds of {result.seconds} s; client on the same CPUs: "
        f"{result.client}"
    )
    yield f"{'':<42}{'requests/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'errors':>8}"
    for each in result.series:
        if each.contender == OURS:
            yield _row(f"{ECHO}, {_clients(each.clients)}, {each.payload}", each.reference)
    for each in (*result.series, result.adapting):
        yield _row(each.name, each.loads)
    yield (
        f"  {len(result.adaptations_ms)} adaptations meanwhile, median "
        f"{np.median(result.adaptations_ms):,.0f} ms each"
    )
    for contender, reason in result.absent.items():
        yield f"  {contender}: not measured: {reason}"
    yield f"{'':<70}ratio   10% - 90% of rounds"
    for name, ratio in result.ratios().items():
        target = f"   target {TARGETS[name]:.2f}" if name in TARGETS else ""
        yield f"  {name:<66}  {ratio}{target}"


def _row(name: str, loads: list[Load]) -> str:
    rate, p50, p99, slowest = (
        float(np.median(_values(loads, field)))
        for field in ("requests_per_s", "p50_ms", "p99_ms", "max_ms")
    )
    errors = sum(each.errors for each in loads)
    return f"  {name:<40}{rate:>11,.0f}{p50:>9.2f}{p99:>9.2f}{slowest:>9.1f}{errors:>8}"


def _values(loads: list[Load], field: str) -> NDArray[np.float64]:
    return np.array([getattr(each, field) for each in loads])


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _measure_beside(echo: str, contender: str, url: str, rounds: int, seconds: int) -> list[Series]:
    """Measure a contender in alternation with the echo, after a second of warming up."""
    series = []
    for name, payload in PAYLOADS.items():
        _check_answer(url, payload)
        load(f"{url}/act", payload, clients=max(CLIENTS), seconds=1)
        for clients in CLIENTS:
            each = Series(contender, name, clients, [], [])
            for _ in range(rounds):
                for loads, address in ((each.reference, echo), (each.loads, url)):
                    loads.append(load(f"{address}/act", payload, clients=clients, seconds=seconds))
            series.append(each)
    return series


def _measure_adapting(run: Path, url: str, rounds: int, seconds: int) -> tuple[Series, list[float]]:
    """Measure one client that acts, in turns alone and beside one that adapts."""
    payload, series = PAYLOADS["JSON"], Series(ADAPTING, "JSON", 1, [], [])
    adaptations_ms: list[float] = []
    body = json.dumps({"task": load_base_policy(str(run)).example_task}).encode()
    _post(f"{url}/adapt", Payload("application/json", body))  # its process has started by then
    for _ in range(rounds):
        series.reference.append(load(f"{url}/act", payload, clients=1, seconds=seconds))
        with _repeated_adaptation(url, body, adaptations_ms):
            series.loads.append(load(f"{url}/act", payload, clients=1, seconds=seconds))
    return series, adaptations_ms


@contextmanager
def _repeated_adaptation(url: str, body: bytes, durations_ms: list[float]) -> Iterator[None]:
    """Adapt again and again while the block runs; append the milliseconds of each."""
    is_over = threading.Event()

    def adapt() -> None:
        while not is_over.is_set():
            start = time.perf_counter()
            _post(f"{url}/adapt", Payload("application/json", body))
            durations_ms.append(1000.0 * (time.perf_counter() - start))

    thread = threading.Thread(target=adapt)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _echo(folder: Path) -> Iterator[str]:
    """Run the echo, on the server program and with the options of the service."""
    port = free_port()
    options = ["--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command = ["uvicorn", "tests.benchmarks.echo:app", *options, "--no-access-log"]
    with _running([*command, "--log-level", "warning"], folder / "echo.log", {}, port) as url:
        yield url


@contextmanager
def _service(run: Path, folder: Path, *options: str, **variables: str) -> Iterator[str]:
    port = free_port()
    command = ["maml_ray", "serve", str(run), "--port", str(port), *options]
    with _running(command, folder / "service.log", variables, port) as url:
        yield url


@contextmanager
def _running(command: list[str], log: Path, variables: dict[str, str], port: int) -> Iterator[str]:
    """Run a module of Python that serves HTTP; yield its URL once it answers."""
    environment = {**os.environ, **variables}
    environment.pop("RAY_ADDRESS", None)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=output, stderr=output, env=environment
        )
    try:
        while not _is_ready(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"it does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:  # also errors of HTTP: the proxy is up before the service
        return False


def _check_answer(url: str, payload: Payload) -> None:
    try:
        _post(f"{url}/act", payload)
    except urllib.error.HTTPError as error:
        raise ServiceError(f"{payload.content_type}: {error}: {error.read().decode()}") from None


def _post(url: str, payload: Payload) -> bytes:
    headers = {"Content-Type": payload.content_type}
    request = urllib.request.Request(url, payload.body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        content: bytes = answer.read()
    return content


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--rounds", type=count, default=5, help="measurements of each row")
    parser.add_argument(
        "--seconds", type=count, default=SECONDS, help="duration of each measurement"
    )
    parser.add_argument("--without-ray", action="store_true", help="do not measure Ray Serve")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    chosen = parser.parse_args()
    info = machine()
    try:
        result = measure(chosen.rounds, chosen.seconds, with_ray=not chosen.without_ray)
    except ServiceError as error:
        sys.exit(f"the service cannot be measured: {error}")
    if chosen.json:
        ratios = {name: asdict(ratio) for name, ratio in result.ratios().items()}
        print(json.dumps({"machine": info, "serving": asdict(result), "ratios": ratios}, indent=2))
        return
    for name, value in info.items():
        print(f"{name:<20}{value}")
    for line in describe(result):
        print(line)


if __name__ == "__main__":
    main()
