"""Receive request bodies within limits: of size and time for each, and of memory for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from maml_ray.serving.http.errors import ApiError, ClientGone, Message, Receive, Scope

JSON = "application/json"
BINARY = "application/octet-stream"
SMALL_BODY_BYTES = 16_384
"""Bodies up to this size are not counted in the total: the number of connections limits them."""
LARGE_BODIES = 2
"""How many bodies of the maximum size all requests together may hold."""
_OBJECT_WEIGHT = 8
"""How many numbers take as much memory as a JSON object."""


@dataclass(frozen=True)
class RequestLimits:
    """Limits of requests, which :class:`maml_ray.serving.settings.ServeSettings` describes."""

    max_body_bytes: int
    receive_timeout_s: float
    max_episode_steps: int
    max_trajectory_steps: int


@dataclass(frozen=True)
class BodyLimits:
    """Limits of the body of one route.

    Attributes:
        max_bytes: maximum size.
        max_values: maximum number of JSON values. Parsed, each takes about 32 bytes, which may be
            16 times its text; an object counts as eight.
        too_many_values: the error for more than ``max_values``.
    """

    max_bytes: int
    max_values: int
    too_many_values: str


@dataclass(frozen=True)
class Body:
    """A body that has arrived.

    Attributes:
        media_type: its declared media type, without parameters.
        content: its bytes.
    """

    media_type: str
    content: bytes | bytearray


class BodyReceiver:
    """Receive the bodies of all requests to a process.

    Args:
        limits: all bodies that are received or used at a time may hold ``LARGE_BODIES`` times
            ``max_body_bytes``, besides the first ``SMALL_BODY_BYTES`` of each.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._timeout_s = limits.receive_timeout_s
        self._max_total_bytes = LARGE_BODIES * limits.max_body_bytes
        self._total_bytes = 0

    @asynccontextmanager
    async def receive(
        self, scope: Scope, receive: Receive, limits: BodyLimits, media_types: Sequence[str]
    ) -> AsyncIterator[Body]:
        """Yield the body of a request, whose memory is counted until the context ends.

        Args:
            scope, receive: the request's ASGI arguments.
            limits: limits of this body.
            media_types: allowed media types.

        Raises:
            ApiError: the body is declared as something else (415), too large (413) or too slow
                (408), or the others take too much memory at the moment (503).
            ClientGone: the caller hung up.
        """
        headers = dict(scope["headers"])
        media_type = media_type_of(headers, media_types)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.max_bytes:
            raise _too_large(limits)
        growing = _GrowingBody(limits, is_json=media_type == JSON)
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    while growing.is_incomplete:
                        message = await receive()
                        self._total_bytes += growing.append(message)
                        if self._total_bytes > self._max_total_bytes:
                            raise ApiError(
                                503, "other large requests take the memory: try again later"
                            )
            except TimeoutError:
                raise ApiError(
                    408, f"the body did not arrive within {self._timeout_s:g} s"
                ) from None
            yield Body(media_type, growing.content)
        finally:
            self._total_bytes -= growing.counted_bytes


class _GrowingBody:
    """A body that arrives in parts."""

    def __init__(self, limits: BodyLimits, *, is_json: bool) -> None:
        self._limits, self._is_json = limits, is_json
        self._num_values = 1
        self.content: bytes | bytearray = b""
        self.is_incomplete = True
        self.counted_bytes = 0

    def append(self, message: Message) -> int:
        """Append the body of an ASGI message, and return the bytes to add to the total.

        Raises:
            ApiError: the body is too large (413).
            ClientGone: the caller hung up.
        """
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        self.is_incomplete = message.get("more_body", False)
        if len(self.content) + len(part) > self._limits.max_bytes:
            raise _too_large(self._limits)
        if self._is_json:
            # Each value but the outermost is the first of an array or object, or follows a comma.
            self._num_values += part.count(b",") + part.count(b"[")
            self._num_values += _OBJECT_WEIGHT * part.count(b"{")
            if self._num_values > self._limits.max_values:
                raise ApiError(413, self._limits.too_many_values)
        if not self.content:
            self.content = part if not self.is_incomplete else bytearray(part)
        else:
            self.content += part
        counted_before = self.counted_bytes
        self.counted_bytes = max(0, len(self.content) - SMALL_BODY_BYTES)
        return self.counted_bytes - counted_before


def media_type_of(headers: Mapping[bytes, bytes], allowed: Sequence[str]) -> str:
    """Return the declared media type of a body, without parameters.

    Raises:
        ApiError: it is none of the ``allowed`` (415).
    """
    header = headers.get(b"content-type", b"").decode("latin-1")
    declared = header.partition(";")[0].strip().lower()
    if declared not in allowed:
        right = " or ".join(f"'Content-Type: {media_type}'" for media_type in allowed)
        found = repr(declared[:80]) if declared else "nothing"
        raise ApiError(415, f"the body is declared as {found}: send the header {right}")
    return declared


def _too_large(limits: BodyLimits) -> ApiError:
    return ApiError(413, f"the body is larger than {limits.max_bytes:,} bytes")
