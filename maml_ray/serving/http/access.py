"""Check the bearer token and the size of each request before it reaches the application."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from maml_ray.common.errors import UserError
from maml_ray.common.locations import parse_path
from maml_ray.common.safe_files import UnreadableFile, read_text
from maml_ray.serving.http.errors import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOKEN_VARIABLE = "MAML_RAY_SERVE_TOKEN"
OPEN_PATHS = frozenset({"/healthz", "/docs", "/openapi.json"})
"""Paths that need no token, for probes and readers: they reveal nothing of the policies."""
_MAX_TOKEN_FILE_BYTES = 10_000
_MIN_TOKEN_LENGTH = 16

_log = logging.getLogger(__name__)


def load_token_digest(token_file: str | None) -> bytes | None:
    """Return the SHA-256 of the token in ``token_file`` or the environment; None without either.

    Only the digest, never the token, is sent through the cluster.

    Raises:
        UserError: the file cannot be read, or the token is too short or not ASCII.
    """
    if token_file is not None:
        try:
            path = parse_path(token_file, "token_file")
            token = read_text(path, max_bytes=_MAX_TOKEN_FILE_BYTES).strip()
        except UnreadableFile as error:
            raise UserError(f"cannot read the token file {token_file}: {error}") from None
        source = f"the token file {token_file}"
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii():
        raise UserError(
            f"{source} must hold a token of at least {_MIN_TOKEN_LENGTH} ASCII characters: make "
            "one with 'openssl rand -hex 32'"
        )
    return _digest(token.encode())


def token_matches(authorization: bytes, token_digest: bytes) -> bool:
    """Return whether an ``Authorization`` header carries the token, in constant time."""
    scheme, _, token = authorization.partition(b" ")
    return hmac.compare_digest(_digest(token.strip()), token_digest) and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class GuardMiddleware:
    """ASGI middleware that checks the token and the body's size and reports unexpected errors.

    Plain ASGI, so that too large a body is rejected while it arrives.

    Args:
        app: the ASGI application behind it.
        token_digest: SHA-256 of the token; None to require none.
        max_body_bytes: maximum size of a request body.
    """

    def __init__(self, app: Any, *, token_digest: bytes | None, max_body_bytes: int) -> None:
        self._app, self._token_digest, self._max_body_bytes = app, token_digest, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, self._limit_body(receive), send_and_note)
        except ApiError as error:
            await _send_error(send, error)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not has_started:
                await _send_error(send, ApiError(500, "the service failed: see its log"))

    def _check_headers(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._token_digest is not None and scope["path"] not in OPEN_PATHS:
            authorization = headers.get(b"authorization", b"")
            if not token_matches(authorization, self._token_digest):
                raise ApiError(
                    401, "a token is required: send the header 'Authorization: Bearer TOKEN'"
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()

    def _limit_body(self, receive: Receive) -> Receive:
        received_bytes = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_body_bytes:,} bytes")


async def _send_error(send: Send, error: ApiError) -> None:
    headers = [(b"content-type", b"application/json")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"error": error.message})})
