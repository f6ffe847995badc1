"""What stands before the service: the token, the size of a body, and a last net for errors.

Plain ASGI, so that a body that is too large is refused while it arrives.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import orjson

from maml_ray.common.errors import UserError
from maml_ray.common.safe_files import UnreadableFile, read_text
from maml_ray.serving.requests import ApiError

TOKEN_VARIABLE = "MAML_RAY_SERVE_TOKEN"
_MOST_BYTES = 10_000
_SHORTEST = 16


def load_token_digest(token_file: str | None) -> bytes | None:
    """SHA-256 of the token in ``token_file`` or the environment; None where there is neither.

    The digest and not the token goes through the cluster.

    Raises:
        UserError: the file cannot be read, or the token is too short to be one.
    """
    if token_file is not None:
        try:
            token = read_text(Path(token_file), max_bytes=_MOST_BYTES).strip()
        except UnreadableFile as error:
            raise UserError(f"cannot read the token file {token_file}: {error}") from None
        source = f"the token file {token_file}"
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < _SHORTEST or not token.isascii():
        raise UserError(
            f"{source} holds no token of {_SHORTEST} ASCII characters or more: make one with "
            "'openssl rand -hex 32'"
        )
    return _digest(token.encode())


def token_matches(authorization: bytes, digest: bytes) -> bool:
    """Whether an ``Authorization`` header carries the token."""
    scheme, _, token = authorization.partition(b" ")
    return hmac.compare_digest(_digest(token.strip()), digest) and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/docs", "/openapi.json"})
"""Asked by probes and read by people, who have no token: they tell nothing of the policies."""

_log = logging.getLogger(__name__)


class GuardMiddleware:
    """ASGI middleware.

    Args:
        app: what is guarded.
        digest: of the token; None to ask for none.
        max_body_bytes: of a request.
    """

    def __init__(self, app: Any, *, digest: bytes | None, max_body_bytes: int) -> None:
        self._app, self._digest, self._most = app, digest, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer in the service's place."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._counted(receive), sending)
        except ApiError as refusal:
            await _refuse(send, refusal)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                await _refuse(send, ApiError(500, "the service failed; its log says why"))

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._digest is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not token_matches(given, self._digest):
                raise ApiError(
                    401, "a token is needed: send the header 'Authorization: Bearer ...'"
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most:,} bytes")


async def _refuse(send: Send, refusal: ApiError) -> None:
    headers = [(b"content-type", b"application/json")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"error": refusal.message})})
