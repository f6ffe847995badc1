"""Answer errors: those that a caller receives as they are, and all others, which are logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from maml_ray.common.errors import escape_unprintable
from maml_ray.serving.served_policy import without_secret

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_AFTER_S = 1
"""Seconds after which to try again what was refused because the service is busy."""
_MAX_PATH = 200
"""Longest path in a log, in characters."""
_BUSY = frozenset({429, 503})
_UNREAD = frozenset({408, 431})
"""Statuses after which the rest of the request is not waited for: the connection is closed."""

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An error that the caller receives as ``{"error": message}``.

    Attributes:
        status: HTTP status, 400 or above; 429 and 503 are sent with ``Retry-After``.
        message: one sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that the exception can be pickled
        self.status = status
        self.message = escape_unprintable(message)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {"content-type": "application/json"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in _BUSY:
            headers["retry-after"] = str(RETRY_AFTER_S)
        if self.status in _UNREAD:
            headers["connection"] = "close"
        return headers

    @property
    def body(self) -> bytes:
        """The JSON that the caller receives."""
        return orjson.dumps({"error": self.message})


_STOPPING = ApiError(503, "the service stops: try again later")


class ClientGone(Exception):
    """The caller has hung up, so there is nobody to answer."""


class ErrorMiddleware:
    """ASGI middleware that answers errors, and logs the unexpected ones.

    Args:
        app: the ASGI application behind it.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer what is raised."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ApiError as error:
            await send_error(send, error)
        except ClientGone:
            pass
        except asyncio.CancelledError:  # the service stops, and has waited for long enough
            if not has_started:
                await send_error(send, _STOPPING, close=True)
        except Exception:
            path = escape_unprintable(public_path(scope["path"]))
            _log.exception("%s %s failed", scope["method"], path)
            if not has_started:
                await send_error(send, ApiError(500, "the service failed: see its log"))


def public_path(path: str) -> str:
    """Return a request's path as a log may contain it: nobody can use a policy who reads it."""
    return without_secret(path)[:_MAX_PATH]


async def send_error(send: Send, error: ApiError, *, close: bool = False) -> None:
    """Answer a request with an error, and with ``close`` close the connection."""
    body = error.body
    headers = {**error.headers, "content-length": str(len(body))}
    if close:
        headers["connection"] = "close"
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
