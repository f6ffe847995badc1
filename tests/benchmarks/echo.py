"""A bare ASGI application that answers each request with its body: the least a service can do.

Run with ``python -m uvicorn tests.benchmarks.echo:app``.
"""

from __future__ import annotations

from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the body and its content type."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    headers = [
        (b"content-type", kinds[0] if kinds else b"application/octet-stream"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
