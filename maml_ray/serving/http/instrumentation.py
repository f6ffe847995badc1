"""Measure every request, and write the access log: ASGI middleware around the whole application."""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from maml_ray.monitoring.service_metrics import ServiceMetrics
from maml_ray.serving.http.errors import Message, Receive, Scope, Send, public_path

CLOSED_BY_CLIENT = 499
"""Status counted for a request whose client hung up before the answer began, as in nginx."""
_ROUTES = frozenset(
    {"/act", "/adapt", "/support", "/healthz", "/metrics", "/docs", "/openapi.json"}
)
_MAX_PENDING_LINES = 10_000
_CLOSE_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class InstrumentationMiddleware:
    """Measure requests and log them; add it last, so that it sees what the others answer.

    Args:
        app: the ASGI application behind it.
        metrics: receives the measurements.
        access_log: receives a line for each request; None for no log.
    """

    def __init__(
        self, app: Any, *, metrics: ServiceMetrics, access_log: AccessLog | None = None
    ) -> None:
        self._app, self._metrics, self._access_log = app, metrics, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, num_bytes, start = CLOSED_BY_CLIENT, 0, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                num_bytes += len(message.get("body", b""))
            await send(message)

        route = route_of(scope["path"])
        self._metrics.request_started(route)
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.request_ended(route, status, seconds)
            if self._access_log is not None:
                self._access_log.add(scope, status, seconds, num_bytes)


class AccessLog:
    """Write a line of JSON for each request, in a thread: a full pipe stops no request.

    The lines hold no token, no body, no query and no full name of an adapted policy. If they
    come faster than they are written, some are left out, and a line says how many.

    Args:
        write: writes a line; by default to the standard output.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = _print_line if write is None else write
        self._lines: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue(_MAX_PENDING_LINES)
        self._num_left_out = 0
        threading.Thread(target=self._run, name="access-log", daemon=True).start()

    def add(self, scope: Scope, status: int, seconds: float, num_bytes: int) -> None:
        """Add the line of a request.

        Args:
            scope: ASGI scope of the request.
            status: HTTP status of the answer.
            seconds: duration.
            num_bytes: size of the answer's body.
        """
        client = scope.get("client")
        entry = {
            "method": scope["method"],
            "path": public_path(scope["path"]),
            "status": status,
            "ms": round(1000 * seconds, 3),
            "bytes": num_bytes,
            "client": client[0] if client else None,
        }
        try:
            self._lines.put_nowait((time.time(), entry))
        except queue.Full:
            self._num_left_out += 1

    def close(self) -> None:
        """Wait until what was added is written, for a second at most."""
        done = threading.Thread(target=self._lines.join, daemon=True)
        done.start()
        done.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            seconds, entry = self._lines.get()
            try:
                if self._num_left_out:
                    num_left_out, self._num_left_out = self._num_left_out, 0
                    self._write_line(seconds, {"requests_left_out": num_left_out})
                self._write_line(seconds, entry)
            except (OSError, ValueError) as error:  # a closed pipe or file
                _log.warning("the access log ends, since it cannot be written: %s", error)
                self._write = lambda line: None
            finally:
                self._lines.task_done()

    def _write_line(self, seconds: float, entry: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
        self._write(json.dumps({"time": moment, **entry}) + "\n")


def route_of(path: str) -> str:
    """Return the route of a path: one of a few, whatever callers ask for."""
    if path in _ROUTES:
        return path
    if not path.startswith("/policy/"):
        return "other"
    return "/policy/NAME/policy.json" if path.endswith("/policy.json") else "/policy/NAME"


def _print_line(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()
