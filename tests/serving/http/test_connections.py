"""Connections beyond the limit, requests that do not arrive, and answers that nobody takes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from maml_ray.serving.http.connections import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    RESERVED_CONNECTIONS,
    limited_protocol,
)
from tests.serving.local_service import running

LIMIT = 3
WAIT_S = 30.0
"""Deadline of what happens at once, on a machine with other work."""
GET = b"GET /work HTTP/1.1\r\nHost: localhost\r\n\r\n"
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = b"x" * 50_000_000


class App:
    """An ASGI application that answers some paths when it is released, and keeps all paths."""

    def __init__(self, waiting: str = "/wait") -> None:
        self.waiting, self.release = waiting, threading.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        while scope["path"] == self.waiting and not self.release.is_set():
            await asyncio.sleep(0.01)
        more = scope["path"] != "/unread"
        while more:
            message = await receive()
            more = message.get("more_body", False)
        body = LARGE if scope["path"] == "/large" else b"done"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def limited(app: App, timeout_s: float = WAIT_S) -> Iterator[int]:
    """Yield the port of a server with at most ``LIMIT`` connections."""
    protocol = limited_protocol(max_connections=LIMIT, timeout_s=timeout_s)
    with running(app, http=protocol) as url:
        yield int(url.rpartition(":")[2])


def connect(port: int, content: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    connection.sendall(content)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Return what arrives until the connection ends or an answer of this file's app is whole."""
    received = b""
    while not received.endswith(b"done") and (part := connection.recv(65536)):
        received += part
    return received


def ask(port: int, content: bytes) -> bytes:
    with connect(port, content) as connection:
        return answer(connection)


def test_beyond_the_limit_is_503_at_once_and_probes_are_answered() -> None:
    app = App()
    with limited(app) as port, ExitStack() as stack:
        busy = [stack.enter_context(connect(port, GET.replace(b"work", b"wait"))) for _ in "123"]
        while len(app.paths) < LIMIT:
            pass
        refused = ask(port, GET)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in refused
        assert b'{"error":"too many connections: try again later"}' in refused
        assert ask(port, PROBE).startswith(b"HTTP/1.1 200 ")
        app.release.set()
        for connection in busy:
            assert answer(connection).startswith(b"HTTP/1.1 200 ")
            connection.close()
        while ask(port, GET).startswith(b"HTTP/1.1 503 "):  # until the server has seen them close
            pass


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"]
)
def test_probes_are_answered_among_hundreds_of_connections_that_never_ask(sent: bytes) -> None:
    app = App()
    with limited(app) as port, ExitStack() as stack:
        count = LIMIT + RESERVED_CONNECTIONS + 100
        silent = [stack.enter_context(connect(port, sent)) for _ in range(count)]
        for _ in range(3):
            assert ask(port, PROBE).startswith(b"HTTP/1.1 200 ")
        assert silent[LIMIT].recv(100).startswith(b"HTTP/1.1 503 ")  # the first beyond the limit


def test_a_probe_that_is_being_answered_is_not_closed_for_others() -> None:
    app = App(waiting="/healthz")
    with limited(app) as port, ExitStack() as stack:
        for _ in range(LIMIT):
            stack.enter_context(connect(port))
        probe = stack.enter_context(connect(port, PROBE))
        while not app.paths:
            pass
        for _ in range(RESERVED_CONNECTIONS + 50):
            stack.enter_context(connect(port))
        assert ask(port, GET).startswith(b"HTTP/1.1 503 ")  # the server has seen all of them
        app.release.set()
        assert answer(probe).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1234", b"HTTP/1.1 408 "),
        (GET + b"GET / HTTP", b"HTTP/1.1 200 "),
    ],
)
def test_a_request_that_does_not_arrive_ends_its_connection(sent: bytes, status: bytes) -> None:
    with limited(App(), timeout_s=0.2) as port, connect(port, sent) as connection:
        received = b""
        while part := connection.recv(65536):  # until the server closes
            received += part
        assert received.startswith(status)
        assert bool(received) is bool(status)


def test_a_slow_answer_is_no_slow_request() -> None:
    app, wait = App(), GET.replace(b"work", b"wait")
    with limited(app, timeout_s=0.1) as port, connect(port, wait) as connection:
        threading.Timer(0.5, app.release.set).start()
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(GET)  # the connection is as good as new
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_nobody_reads_must_still_arrive() -> None:
    sent = b"POST /unread HTTP/1.1\r\nContent-Length: 9\r\n\r\n1234"
    with limited(App(), timeout_s=0.2) as port, connect(port, sent) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        assert connection.recv(1000).startswith((b"", b"HTTP/1.1 408 "))


def test_an_answer_that_is_not_taken_ends_the_connection() -> None:
    app = App()
    with limited(app, timeout_s=0.2) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_S)
        connection.connect(("127.0.0.1", port))
        connection.sendall(GET.replace(b"work", b"large"))
        others = [connect(port, GET.replace(b"work", b"wait")) for _ in "12"]
        # Its place is free again only once it has ended.
        while not (last := ask(port, GET)).startswith(b"HTTP/1.1 200 "):
            assert last.startswith(b"HTTP/1.1 503 ")
        app.release.set()
        for other in others:
            other.close()


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"GET / HTTP/1.1\r\n", b"x: " + b"y" * 2000 + b"\r\n"),
        (b"GET / HTTP/1.1\r\nx: ", b"y" * 2000),
        (CHUNKED + b"2\r\n{}\r\n0\r\nx: ", b"y" * 2000),
        (CHUNKED + b"2;", b"y" * 2000),
    ],
)
def test_headers_and_trailers_without_end_are_refused(head: bytes, endless: bytes) -> None:
    app = App(waiting="/")
    with limited(app) as port, connect(port, head) as connection:
        received, num_sent = b"", 0
        with suppress(ConnectionError):
            while num_sent < 20_000_000:
                connection.sendall(endless)
                num_sent += len(endless)
        assert num_sent < 20_000_000
        with suppress(ConnectionError):
            received = answer(connection)
        assert not received or received.startswith(b"HTTP/1.1 431 ")
        assert ask(port, PROBE).startswith(b"HTTP/1.1 200 ")
        assert MAX_HEAD_BYTES < 200_000
        app.release.set()  # the server ends only after the app


def test_a_body_much_longer_than_the_headers_may_be_is_received() -> None:
    with limited(App()) as port:
        length = b"Content-Length: %d\r\n\r\n" % len(LARGE)
        with connect(port, b"POST / HTTP/1.1\r\n" + length) as connection:
            for start in range(0, len(LARGE), 1_000_000):
                connection.sendall(LARGE[start : start + 1_000_000])
            connection.sendall(GET[:10])  # the begin of another request after a body
            assert answer(connection).startswith(b"HTTP/1.1 200 ")
            connection.sendall(GET[10:])
            assert answer(connection).startswith(b"HTTP/1.1 200 ")


def test_trailers_are_no_headers() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.extend(scope["headers"])
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
        )
        await send({"type": "http.response.body", "body": b"done"})

    sent = CHUNKED + b"2\r\n{}\r\n0\r\nauthorization: Bearer x\r\n\r\n"
    with running(app, http=limited_protocol(max_connections=LIMIT, timeout_s=WAIT_S)) as url:
        ask(int(url.rpartition(":")[2]), sent)
    assert seen == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize(("number", "status"), [(MAX_HEADERS, b"200"), (MAX_HEADERS + 1, b"400")])
def test_the_number_of_headers_is_limited(number: int, status: bytes) -> None:
    with limited(App()) as port:
        received = ask(port, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * number + b"\r\n")
        assert received.startswith(b"HTTP/1.1 " + status)


def test_a_flood_of_pipelined_requests_ends_the_connection() -> None:
    app = App()
    with limited(app) as port:
        with connect(port, GET.replace(b"work", b"wait") * 10 * MAX_PIPELINED) as connection:
            received = b""
            while part := connection.recv(65536):
                received += part
        app.release.set()
        assert received.startswith(b"HTTP/1.1 400 ")
        assert len(app.paths) <= 1
        assert ask(port, PROBE).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order() -> None:
    with limited(App()) as port, connect(port, GET * MAX_PIPELINED) as connection:
        received = b""
        while received.count(b"done") < MAX_PIPELINED:
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200 ") == MAX_PIPELINED
