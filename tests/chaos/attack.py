"""Attack a service in many ways at once, while others use it as they should.

Attackers, clients and probes are three processes, so that none waits for another's interpreter.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from multiprocessing import get_context
from typing import Any

import numpy as np
import psutil

OBSERVATION_SIZE = 17
CLIENTS = 64
HALF_SENT, SLOW, LARGE, HANGING_UP, INVALID = 300, 30, 24, 16, 8
"""How many attackers of each kind there are at a time."""
LARGE_BYTES = 14_000_000
DEADLINE_S = 60.0
"""After which an answer will not come: far more than any needs, on a machine with other work."""
_PAUSE_S = 0.05
"""Pause of an attacker before the next connection; without it, they only wear each other down."""
_STATUS = re.compile(rb"HTTP/1.1 (\d{3}) ")


@dataclass
class Outcome:
    """What the attack has shown.

    Attributes:
        statuses: number of answers by kind of caller and status; ``closed`` without an answer.
        wrong: answers that are not those to the client's own observation, or that no client
            should get.
        latencies: seconds of requests to act, by phase, sent one at a time.
        health: seconds of probes during the attack.
        idle_bytes, max_bytes: memory of the service's processes, before the attack and at most.
    """

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    health: list[float] = field(default_factory=list)
    idle_bytes: int = 0
    max_bytes: int = 0

    def table(self) -> str:
        """Return the outcome as text."""
        lines = [
            f"{count:8d}  {who}: {status}" for (who, status), count in sorted(self.statuses.items())
        ]
        for phase, seconds in [*self.latencies.items(), ("GET /healthz", self.health)]:
            low, high, most = 1000 * np.percentile(seconds, [50, 99, 100])
            lines.append(
                f"{phase}: p50 {low:.1f} ms, p99 {high:.1f} ms, longest {most:.1f} ms, of "
                f"{len(seconds)}"
            )
        idle, most = self.idle_bytes / 1e6, self.max_bytes / 1e6
        ratio = most / idle
        lines.append(
            f"memory: {idle:.0f} MB idle, at most {most:.0f} MB, {ratio:.2f} times as much"
        )
        return "\n".join(lines)


def attack(
    port: int,
    process: psutil.Process,
    expected: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    seconds: float,
) -> Outcome:
    """Attack a service of a policy with ``OBSERVATION_SIZE`` observations, without a token.

    First only with large bodies, for a fifth of the time, then in all ways at once.

    Args:
        port: of the service on this machine.
        process: of the service.
        expected: returns the actions of observations (n, 17).
        seconds: duration.
    """
    outcome = Outcome()
    observations = np.random.default_rng(0).standard_normal((CLIENTS, OBSERVATION_SIZE))
    own_answers = [(row.tolist(), expected(row[None])[0].tolist()) for row in observations]
    probe = _Probe(port, process, own_answers[0])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        for worker in [workers.submit(time.sleep, 0.1) for _ in range(2)]:
            worker.result()  # both have started
        probe.adapt()  # so that the memory is that of a service in use
        probe.act_for("POST /act, idle", seconds / 10, outcome)
        outcome.idle_bytes = outcome.max_bytes = memory_of(process)
        large = workers.submit(attack_for, port, seconds / 5, ("large",))
        probe.act_until("POST /act, under 24 bodies of 14 MB", large.done, outcome)
        attackers = workers.submit(attack_for, port, 4 * seconds / 5, tuple(ATTACKS))
        clients = workers.submit(act_for, port, 4 * seconds / 5, own_answers)
        probe.act_until("POST /act, under attack by all", attackers.done, outcome)
        for found in (large.result(), attackers.result()):
            outcome.statuses += found
        answered, wrong = clients.result()
        outcome.statuses += answered
        outcome.wrong += wrong
    return outcome


def memory_of(process: psutil.Process) -> int:
    """Return the resident bytes of a process and its children."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total


class _Probe:
    """Sends requests to act, one at a time, while a thread probes health and memory."""

    def __init__(
        self, port: int, process: psutil.Process, own: tuple[list[float], list[float]]
    ) -> None:
        self._port, self._process, self._own = port, process, own

    def adapt(self) -> None:
        """Adapt once."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        body = json.dumps({"task": {"direction": 1}})
        connection.request("POST", "/adapt", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()

    def act_for(self, phase: str, seconds: float, outcome: Outcome) -> None:
        end = time.monotonic() + seconds
        self.act_until(phase, lambda: time.monotonic() > end, outcome)

    def act_until(self, phase: str, is_over: Callable[[], bool], outcome: Outcome) -> None:
        watcher = threading.Thread(target=self._watch, args=(is_over, outcome))
        watcher.start()
        latencies = outcome.latencies.setdefault(phase, [])
        connection = HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        body = json.dumps({"observations": self._own[0]})
        while not is_over():
            start = time.perf_counter()
            connection.request("POST", "/act", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            latencies.append(time.perf_counter() - start)
            outcome.statuses["probe", str(answer.status)] += 1
            problem = _problem(answer.status, content, self._own[1])
            if problem:
                outcome.wrong.append(problem)
            time.sleep(0.01)
        connection.close()
        watcher.join()

    def _watch(self, is_over: Callable[[], bool], outcome: Outcome) -> None:
        while not is_over():
            start = time.perf_counter()
            connection = HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
            try:
                connection.request("GET", "/healthz")
                status = connection.getresponse().status
            except OSError as error:
                status = 0
                outcome.wrong.append(f"GET /healthz: {error!r}")
            finally:
                connection.close()
            outcome.health.append(time.perf_counter() - start)
            outcome.statuses["GET /healthz", str(status)] += 1
            outcome.max_bytes = max(outcome.max_bytes, memory_of(self._process))
            time.sleep(0.1)


def act_for(
    port: int, seconds: float, own_answers: Sequence[tuple[list[float], list[float]]]
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Let many clients act, each with an observation of its own; return statuses and problems."""
    statuses: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []

    async def act(observation: list[float], expected: list[float]) -> None:
        body = json.dumps({"observations": observation}).encode()
        streams = None
        while True:
            try:
                if streams is None:
                    streams = await asyncio.open_connection("127.0.0.1", port)
                status, content = await _ask(*streams, _request("/act", body))
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses["client", type(error).__name__] += 1
                streams = None
                await asyncio.sleep(_PAUSE_S)
                continue
            statuses["client", str(status)] += 1
            problem = _problem(status, content, expected)
            if problem:
                wrong.append(problem)
            if status == 503:
                streams = None
                await asyncio.sleep(_PAUSE_S)

    _run_for(seconds, [act(*each) for each in own_answers])
    return statuses, wrong[:10]


def _problem(status: int, content: bytes, expected: list[float]) -> str | None:
    if status == 503:
        return None
    if status != 200:
        return f"a right request was answered with {status}: {content[:200]!r}"
    actions = json.loads(content)["actions"]
    if not np.allclose(actions, expected, rtol=1e-4, atol=1e-5):
        return f"{actions} are not the actions of this client: {expected}"
    return None


def attack_for(port: int, seconds: float, kinds: Sequence[str]) -> Counter[tuple[str, str]]:
    """Attack in ways of :data:`ATTACKS`, and return the number of answers."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # of connections that the service closes
    statuses: Counter[tuple[str, str]] = Counter()
    rng = random.Random(0)

    async def repeat(kind: str, once: Callable[[int, random.Random], Awaitable[str]]) -> None:
        while True:
            try:
                status = await once(port, rng)
            except (OSError, asyncio.IncompleteReadError):
                status = "closed"
            statuses[kind, status] += 1
            await asyncio.sleep(_PAUSE_S)

    attackers = [repeat(kind, ATTACKS[kind][1]) for kind in kinds for _ in range(ATTACKS[kind][0])]
    _run_for(seconds, attackers)
    return statuses


def _run_for(seconds: float, work: Sequence[Awaitable[None]]) -> None:
    async def run() -> None:
        tasks = [asyncio.ensure_future(each) for each in work]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        for task in done:
            task.result()

    asyncio.run(run())


def _request(path: str, body: bytes, length: int | None = None) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


async def _status(reader: asyncio.StreamReader) -> str:
    """Return the status of an answer, once the server has closed the connection or answered."""
    found = _STATUS.match(await reader.read(65536))
    return "closed" if found is None else found[1].decode()


async def _half_sent(port: int, rng: random.Random) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = rng.choice(["/act", "/adapt"])
    sent = _request(path, b'{"observations": [1,', rng.choice([100, 10_000, 10_000_000]))
    writer.write(sent[: rng.choice([0, 20, len(sent)])])
    try:
        return await _status(reader)
    finally:
        writer.close()


async def _slow(port: int, rng: random.Random) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for byte in _request("/adapt", b" " * 1000):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1 * rng.random())
            if reader.at_eof():
                break
        return await _status(reader)
    finally:
        writer.close()


async def _large(port: int, rng: random.Random) -> str:
    body = rng.choice(_LARGE_BODIES)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request(rng.choice(["/adapt", "/adapt", "/act"]), body))
        return await _status(reader)
    finally:
        writer.transport.abort()


async def _hang_up(port: int, rng: random.Random) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    path, body = rng.choice(
        [("/act", b'{"observations": [0]}'), ("/adapt", b'{"task": {"direction": 1}, "steps": 1}')]
    )
    sent = _request(path, body + b" " * rng.choice([0, 100_000]))
    if rng.random() < 0.5:  # with a reset
        option = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    writer.write(sent[: rng.choice([len(sent), rng.randrange(len(sent))])])
    await asyncio.sleep(0.01 * rng.random())
    writer.transport.abort()
    return "hung up"


async def _invalid(port: int, _: random.Random) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(next(_INVALID))
        return await _status(reader)
    finally:
        writer.transport.abort()


ATTACKS: dict[str, tuple[int, Callable[[int, random.Random], Awaitable[str]]]] = {
    "half sent": (HALF_SENT, _half_sent),
    "slow": (SLOW, _slow),
    "large": (LARGE, _large),
    "hanging up": (HANGING_UP, _hang_up),
    "invalid": (INVALID, _invalid),
}
"""How many attackers there are of each kind, and what each does again and again."""


def _filled(pattern: bytes) -> bytes:
    return b"[" + pattern * ((LARGE_BYTES - 10) // len(pattern)) + b"0]"


_LARGE_BODIES = [
    _filled(pattern) for pattern in (b"0,", b"0.123456789,", b"[],", b'{"a":0},', b"[0,0,0],")
]
_LARGE_BODIES.append(b'{"policy": "' + b"x" * (LARGE_BYTES - 20) + b'"}')
_INVALID = itertools.cycle(
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000,
        b"GET /" + b"a" * 1_000_000,
        b"POST /act HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 1_000_000,
        b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000,
        _request("/act", b'{"observations": [0]}'),
        _request("/adapt", b'{"task": {"direction": 7}}'),
        _request("/act", b"[" * 10_000),
        _request("/act", b"{}").replace(b"localhost", b"evil.example"),
        _request("/act", b"{}").replace(b"application/json", b"text/plain"),
    ]
)
