"""Limit connections: their number, the time that a request takes to arrive, and unread answers.

uvicorn waits forever for a request's first byte, its headers and its body, and its own limit of
connections leaves no room for probes.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from maml_ray.common.errors import ResourceError
from maml_ray.serving.http.errors import ApiError, Application, Receive, Scope, Send, send_error

RESERVED_CONNECTIONS = 128
"""Connections beyond the limit, for probes of ``/healthz`` and for answers of 503."""
MAX_HEAD_BYTES = 65_536
"""Bytes after which a request's headers, or the trailers of its body, must end."""
MAX_HEADERS = 100
MAX_PIPELINED = 32
"""Requests of a connection that wait for the answer to the one before."""
_OTHER_FILES = 128
"""Room for files, pipes and libraries among the open files of the process."""
_BUSY = ApiError(503, "too many connections: try again later")


class ConnectionTable:
    """Keep the connections of a server, and limit their number.

    Args:
        max_connections: connections beyond it may only ask for ``/healthz``.
        timeout_s: seconds in which a request must arrive, and in which an answer must be taken.
    """

    def __init__(self, *, max_connections: int, timeout_s: float) -> None:
        self.max_connections, self.timeout_s = max_connections, timeout_s
        self._within_limit: set[LimitedProtocol] = set()
        self._beyond_limit: dict[LimitedProtocol, None] = {}  # oldest first

    def add(self, connection: LimitedProtocol) -> bool:
        """Add a connection and return whether it is within the limit.

        If too many are beyond it, the oldest of these is closed that is not being answered: a
        probe is never kept out by connections that send nothing.
        """
        if len(self._within_limit) < self.max_connections:
            self._within_limit.add(connection)
            return True
        self._beyond_limit[connection] = None
        if len(self._beyond_limit) > RESERVED_CONNECTIONS:
            waiting = (each for each in self._beyond_limit if not each.is_answering)
            oldest = next(waiting, connection)
            self.remove(oldest)
            oldest.reject(_BUSY)
        return False

    def remove(self, connection: LimitedProtocol) -> None:
        """Remove a connection, if it is there."""
        self._within_limit.discard(connection)
        self._beyond_limit.pop(connection, None)


def limited_protocol(
    kind: Callable[..., LimitedProtocol] | None = None, *, max_connections: int, timeout_s: float
) -> Callable[..., LimitedProtocol]:
    """Return uvicorn's ``http`` for a server that limits its connections.

    Args:
        kind: the protocol; :class:`LimitedProtocol` by default.
        max_connections, timeout_s: limits of :class:`ConnectionTable`.

    Raises:
        ResourceError: the process may not open as many files.
    """
    _raise_open_files(max_connections + RESERVED_CONNECTIONS + _OTHER_FILES)
    table = ConnectionTable(max_connections=max_connections, timeout_s=timeout_s)
    return partial(kind or LimitedProtocol, table=table)


def _raise_open_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ResourceError(
            f"max_connections needs {needed:,} open files, and this process may have {hard:,}: "
            "reduce max_connections, or raise the limit with 'ulimit -Hn'"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, within the limits of a table of connections."""

    def __init__(self, *args: Any, table: ConnectionTable, **options: Any) -> None:
        super().__init__(*args, **options)
        self._table = table
        self._timer: asyncio.TimerHandle | None = None
        # Since when a request is incomplete, and since when the client does not take an answer.
        self._receiving_since: float | None = None
        self._blocked_since: float | None = None
        # Bytes since the last part of an incomplete request: the parser keeps a header, or a
        # trailer, until it ends.
        self._unparsed_bytes: int | None = None
        self._part_ended = False

    @property
    def is_answering(self) -> bool:
        """Whether a request has arrived and its answer is not complete."""
        cycle = self.cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    def connection_made(self, transport: Any) -> None:
        """Accept a connection."""
        super().connection_made(transport)
        if not self._table.add(self):
            self.app = partial(_probes_only, self.app)
        self._receiving_since = self.loop.time()
        self._timer = self.loop.call_later(self._table.timeout_s, self._check_time)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._table.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        if self._receiving_since is None:
            self._receiving_since = self.loop.time()
        self._part_ended = False
        super().data_received(data)
        if self._unparsed_bytes is not None and not self._part_ended:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:
                self.reject(
                    ApiError(431, f"the headers or trailers exceed {MAX_HEAD_BYTES:,} bytes")
                )

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._part_ends()
        if self._receiving_since is None:  # it follows another one in the same data
            self._receiving_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers are dropped, which must not count as headers.

        Raises:
            ValueError: there are too many; the connection ends.
        """
        if "method" in self.scope:  # the headers are complete
            return
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer a request.

        Raises:
            ValueError: too many requests wait for an answer; the connection ends.
        """
        self._part_ends()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Add a part of a body."""
        self._part_ends()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._receiving_since = self._unparsed_bytes = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client does not take the answer."""
        self._blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has taken the answer."""
        self._blocked_since = None
        super().resume_writing()

    def reject(self, error: ApiError) -> None:
        """Send an error, unless an answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        is_answered = self.cycle is not None and self.cycle.response_started
        if not self.pipeline and (not is_answered or self.cycle.response_complete):
            self.transport.write(_encode(error))
        self.transport.close()

    def _part_ends(self) -> None:
        self._unparsed_bytes, self._part_ended = 0, True

    def _check_time(self) -> None:
        """Close the connection if it has waited too long, or else look again when it will have."""
        timeout_s, now = self._table.timeout_s, self.loop.time()
        if self._blocked_since is not None and now - self._blocked_since >= timeout_s:
            self.transport.abort()
            return
        if self._receiving_since is not None and now - self._receiving_since >= timeout_s:
            if self._unparsed_bytes is None and self.cycle is None:
                self.transport.close()  # no request has begun
            else:
                self.reject(ApiError(408, f"the request did not arrive within {timeout_s:g} s"))
            return
        started = [since for since in (self._receiving_since, self._blocked_since) if since]
        self._timer = self.loop.call_later(
            min(started, default=now) + timeout_s - now, self._check_time
        )


async def _probes_only(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of a connection beyond the limit."""
    if scope["type"] == "http" and scope["path"] == "/healthz":
        await app(scope, receive, send)
    else:
        await send_error(send, _BUSY, close=True)


def _encode(error: ApiError) -> bytes:
    """Return an answer outside of the application, after which the connection is closed."""
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    headers = {**error.headers, "content-length": str(len(error.body)), "connection": "close"}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + error.body
