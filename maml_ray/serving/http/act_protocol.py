"""Answer most requests to act without ASGI, whose overhead is several times the policy's own time.

A small request to a policy at hand is parsed as soon as it has arrived, and answered with all that
arrived in the same turn of the event loop. The application answers the others and reports all
errors; it checks, parses, acts and encodes with the same functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from maml_ray.serving.http.access import check_access
from maml_ray.serving.http.act_body import (
    ACT_MEDIA_TYPES,
    ActRequest,
    ActResponse,
    EncodedAnswer,
    act_limits,
    encode_act,
    parse_act,
)
from maml_ray.serving.http.api import ApiBackend
from maml_ray.serving.http.connections import LimitedProtocol, limited_protocol
from maml_ray.serving.http.errors import ApiError, Scope
from maml_ray.serving.http.instrumentation import CLOSED_BY_CLIENT, AccessLog
from maml_ray.serving.http.limits import SMALL_BODY_BYTES, RequestLimits, media_type_of
from maml_ray.serving.served_policy import ServedPolicy

_ROUTE = "/act"
_STATUS = 200


@dataclass(frozen=True, eq=False)
class DirectActing:
    """What the connections share.

    Attributes:
        backend: does the work.
        token_digest: SHA-256 of the token that callers must present; None to require none.
        access_log: receives a line for each request; None for no log.
        max_body_bytes: maximum size of a body that the application need not receive.
    """

    backend: ApiBackend
    token_digest: bytes | None
    access_log: AccessLog | None
    max_body_bytes: int

    def may_answer(self, scope: Scope) -> bool:
        """Return whether a request, whose headers have arrived, is a small one to act."""
        if scope["path"] != _ROUTE or scope["method"] != "POST":
            return False
        for name, value in scope["headers"]:
            if name == b"content-length":
                return value.isdigit() and int(value) <= self.max_body_bytes
        return False

    def parse(self, scope: Scope, content: bytearray) -> tuple[ServedPolicy, ActRequest] | None:
        """Return a request and its policy; None if the application must answer."""
        try:
            check_access(scope, self.token_digest)
            media_type = media_type_of(dict(scope["headers"]), ACT_MEDIA_TYPES)
            request = parse_act(media_type, content, scope["query_string"], self.backend.spec)
        except ApiError:
            return None
        policy = self.backend.policies.get_cached(request.policy)
        return None if policy is None else (policy, request)

    def record(self, scope: Scope, status: int, start: float, num_bytes: int) -> None:
        """Measure and log an answer to a request that began at ``start`` of the clock."""
        seconds = time.perf_counter() - start
        self.backend.metrics.request_started(_ROUTE)
        self.backend.metrics.request_ended(_ROUTE, status, seconds)
        if self.access_log is not None:
            self.access_log.add(scope, status, seconds, num_bytes)


class ActProtocol(LimitedProtocol):
    """uvicorn's protocol, which answers small requests to act itself.

    Args:
        acting: what the connections share.
        arguments, options: of :class:`LimitedProtocol`.
    """

    def __init__(self, *arguments: Any, acting: DirectActing, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._acting, self._whole_app = acting, self.app
        self._incomplete: Any = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Begin to answer a request, whose body may be on its way: called by uvicorn."""
        is_limited = app is not self._whole_app or self.flow.write_paused
        if is_limited or cycle.waiting_for_100_continue or not self._acting.may_answer(cycle.scope):
            super()._start_asgi_task(cycle, app)
        elif cycle.more_body:
            self._incomplete = cycle
        else:
            self._act(cycle)

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        if self._incomplete is not None:
            cycle, self._incomplete = self._incomplete, None
            self._act(cycle)

    def _act(self, cycle: Any) -> None:
        start = time.perf_counter()
        parsed = self._acting.parse(cycle.scope, cycle.body)
        if parsed is None:
            super()._start_asgi_task(cycle, self._whole_app)
            return
        policy, request = parsed
        self._acting.backend.batcher.submit(
            policy, request, partial(self._on_answer, cycle, request, start)
        )

    def _on_answer(
        self, cycle: Any, request: ActRequest, start: float, answer: ActResponse | Exception
    ) -> None:
        if cycle.disconnected or self.transport.is_closing():
            self._acting.record(cycle.scope, CLOSED_BY_CLIENT, start, 0)
            return
        try:
            encoded = encode_act(request, answer) if isinstance(answer, ActResponse) else None
        except Exception:  # a defect must not keep the others of its batch from their answers
            encoded = None
        if encoded is None:
            super()._start_asgi_task(cycle, self._whole_app)  # which reports the error
            return
        self._respond(cycle, encoded)
        self._acting.record(cycle.scope, _STATUS, start, len(encoded.content))

    def _respond(self, cycle: Any, answer: EncodedAnswer) -> None:
        """Send an answer with one write, and begin with the connection's next request."""
        parts = [b"HTTP/1.1 200 OK\r\n"]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            if name == b"connection":  # of a server that stops
                cycle.keep_alive = False
            else:
                parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(answer.content), answer.content)
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()


def act_protocol(
    backend: ApiBackend,
    *,
    token_digest: bytes | None,
    access_log: AccessLog | None,
    max_connections: int,
    limits: RequestLimits,
) -> Callable[..., asyncio.Protocol]:
    """Return uvicorn's ``http`` for an application made by ``make_app`` with the same arguments.

    Raises:
        ResourceError: the process may not open as many files as ``max_connections`` needs.
    """
    largest = act_limits(backend.spec, limits.max_body_bytes).max_bytes
    acting = DirectActing(backend, token_digest, access_log, min(SMALL_BODY_BYTES, largest))
    return limited_protocol(
        partial(ActProtocol, acting=acting),
        max_connections=max_connections,
        timeout_s=limits.receive_timeout_s,
    )
