"""The routes, as a FastAPI application: bodies are read by us, described by OpenAPI."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from maml_ray.common.versions import own_version
from maml_ray.serving.auth import GuardMiddleware
from maml_ray.serving.openapi import RouteDocs, document_bearer_auth
from maml_ray.serving.requests import ApiError
from maml_ray.serving.service import Service


def make_app(service: Service, *, digest: bytes | None, max_body_bytes: int) -> FastAPI:
    """The application.

    Args:
        service: what the routes call.
        digest: of the token that callers must present; None to ask for none.
        max_body_bytes: of a request.
    """
    app = FastAPI(
        title="maml_ray",
        summary="A meta-trained policy: it acts, and adapts to a task in one gradient step.",
        version=own_version(),
        redoc_url=None,
    )
    app.add_middleware(GuardMiddleware, digest=digest, max_body_bytes=max_body_bytes)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    _add_routes(app, service, RouteDocs(service.spec, service.example_task))
    if digest is not None:
        document_bearer_auth(app)
    return app


def _add_routes(app: FastAPI, service: Service, told: RouteDocs) -> None:
    @app.post("/act", **told.act())
    async def act(request: Request) -> Response:
        return _json(await service.act(await request.body()))

    @app.post("/adapt", **told.adapt())
    async def adapt(request: Request) -> Response:
        return _json(await service.adapt(await request.body()))

    @app.get("/policy/{name}", **told.policy())
    async def policy(name: str) -> Response:
        content = (await service.policy(name)).parameters
        return Response(content, media_type="application/octet-stream")

    @app.get("/policy/{name}/policy.json", **told.description())
    async def description(name: str) -> Response:
        content = (await service.policy(name)).description
        return Response(content, media_type="application/json")

    @app.get("/healthz", **told.health())
    async def healthz() -> Response:
        return _json(await service.health())


def _json(content: dict[str, Any], status: int = 200) -> Response:
    encoded = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(encoded, status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for it alone"
    return _json({"error": error.message}, error.status)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    answer = _json({"error": f"{request.url.path:.80}: {error.detail}"}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer
