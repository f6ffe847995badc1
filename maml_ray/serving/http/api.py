"""Build the HTTP API as a FastAPI application, from a backend that does the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from maml_ray.common.versions import own_version
from maml_ray.monitoring.service_metrics import CONTENT_TYPE, ServiceMetrics
from maml_ray.policies.spec import PolicySpec
from maml_ray.serving.adaptation import AdaptResponse, AddPolicy, add_support_policies
from maml_ray.serving.batching import ActBatcher
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.http.access import AccessMiddleware
from maml_ray.serving.http.act_body import (
    ACT_MEDIA_TYPES,
    act_limits,
    encode_act,
    parse_act,
)
from maml_ray.serving.http.adapt_body import SUPPORT_LIMITS, adapt_limits, parse_support
from maml_ray.serving.http.bodies import BASE_POLICY
from maml_ray.serving.http.errors import ApiError, ErrorMiddleware
from maml_ray.serving.http.instrumentation import AccessLog, InstrumentationMiddleware
from maml_ray.serving.http.limits import JSON, BodyReceiver, RequestLimits
from maml_ray.serving.http.openapi import RouteDocs, document_bearer_auth
from maml_ray.serving.served_policy import ServedPolicy

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class ApiBackend:
    """What the routes call; how and in which process it runs is up to the backend.

    Attributes:
        spec: sizes of every served policy.
        context_size: numbers of the context that adaptations change; None without one.
        example_task: parameters of a task, for the documentation; None if unknown.
        policies: looks up policies by name.
        batcher: answers requests to act.
        adapt: answers a request to adapt, given its body, possibly in another process.
        add_policy: stores an adapted policy where every replica finds it; returns its lifetime in
            seconds.
        storage_warnings: returns what operators should know of where policies are stored.
        metrics: measurements of this process.
    """

    spec: PolicySpec
    context_size: int | None
    example_task: dict[str, float] | None
    policies: PolicyCache
    batcher: ActBatcher
    adapt: Callable[[bytes | bytearray], Awaitable[AdaptResponse | ApiError]]
    add_policy: AddPolicy
    storage_warnings: Callable[[], Awaitable[list[str]]]
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)


def make_app(
    backend: ApiBackend,
    *,
    token_digest: bytes | None,
    limits: RequestLimits,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """Return the application.

    Bodies are parsed by :mod:`maml_ray.serving.http.bodies`, not by FastAPI, for speed and for
    one-sentence errors; :class:`RouteDocs` describes them in OpenAPI.

    Args:
        backend: does the work.
        token_digest: SHA-256 of the token that callers must present; None to require none.
        limits: limits of requests.
        access_log: receives a line for each request; None for no log.
    """
    app = FastAPI(
        title="maml_ray",
        summary="A meta-trained policy: it acts, and adapts to a task in one gradient step.",
        version=own_version(),
        redoc_url=None,
    )
    app.add_middleware(AccessMiddleware, token_digest=token_digest)
    app.add_middleware(ErrorMiddleware)
    # The last one added receives a request first.
    app.add_middleware(InstrumentationMiddleware, metrics=backend.metrics, access_log=access_log)
    app.add_exception_handler(HTTPException, _on_http_exception)
    docs = RouteDocs(backend.spec, backend.context_size, backend.example_task, limits)
    _add_routes(app, backend, limits, docs)
    if token_digest is not None:
        document_bearer_auth(app)
    return app


def _add_routes(app: FastAPI, backend: ApiBackend, limits: RequestLimits, docs: RouteDocs) -> None:
    bodies = BodyReceiver(limits)
    of_act = act_limits(backend.spec, limits.max_body_bytes)
    of_adapt = adapt_limits(backend.spec, backend.context_size, limits)

    # The names of these functions are the operation ids in OpenAPI.
    @app.post("/act", **docs.act())
    async def act(request: Request) -> Response:
        scope = request.scope
        async with bodies.receive(scope, request.receive, of_act, ACT_MEDIA_TYPES) as body:
            parsed = parse_act(body.media_type, body.content, scope["query_string"], backend.spec)
        policy = await backend.policies.get(parsed.policy)
        answer = encode_act(parsed, _or_raise(await backend.batcher.act(policy, parsed)))
        response = Response(answer.content)
        response.raw_headers.extend(answer.headers)
        return response

    @app.post("/adapt", **docs.adapt())
    async def adapt(request: Request) -> Response:
        async with bodies.receive(request.scope, request.receive, of_adapt, [JSON]) as body:
            response = _or_raise(await backend.adapt(body.content))
        task = response.policy.task
        return _json(
            {
                "policy": response.policy.name,
                "adapted_from": response.adapted_from,
                "expires_in_s": await backend.add_policy(response.policy),
                "task": None if task is None else dict(task.parameters),
                "steps": [asdict(step) for step in response.steps],
                "return_before": response.return_before,
                "return_after": response.return_after,
            }
        )

    @app.post("/support", **docs.support())
    async def support(request: Request) -> Response:
        scope = request.scope
        async with bodies.receive(scope, request.receive, SUPPORT_LIMITS, [JSON]) as body:
            wanted = parse_support(body.content)
        policy = await backend.policies.get(wanted.policy)
        added = await add_support_policies(policy, wanted.episodes, backend.add_policy)
        return _json(asdict(added))

    @app.get("/policy/{name}", **docs.policy())
    async def policy(name: str) -> Response:
        content = (await backend.policies.get(name)).parameters_file
        return Response(content, media_type="application/octet-stream")

    @app.get("/policy/{name}/policy.json", **docs.description())
    async def description(name: str) -> Response:
        content = (await backend.policies.get(name)).description_file
        return Response(content, media_type="application/json")

    @app.get("/healthz", **docs.health())
    async def healthz() -> Response:
        base = await backend.policies.get(BASE_POLICY)
        task = base.agent.settings.task.name
        warnings = [*_warnings_of(base), *await backend.storage_warnings()]
        return _json({"status": "ok", "policy": base.name, "task": task, "warnings": warnings})

    @app.get("/metrics", **docs.metrics())
    async def metrics() -> Response:
        return Response(backend.metrics.text, headers={"content-type": CONTENT_TYPE})


def _warnings_of(base: ServedPolicy) -> list[str]:
    """Return what operators should know of the base policy, without paths: no token is needed."""
    number = base.num_passed_over
    if not number:
        return []
    newer = "a newer checkpoint is" if number == 1 else f"{number} newer checkpoints are"
    return [f"{newer} damaged or incomplete, and {base.name} is served: see the service's log"]


def _or_raise(result: Value | ApiError) -> Value:
    if isinstance(result, ApiError):
        raise result
    return result


def _json(content: dict[str, Any], status: int = 200) -> Response:
    encoded = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(encoded, status, media_type="application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": f"{request.url.path:.80}: {error.detail}"}, error.status_code)
    response.headers.update(error.headers or {})
    return response
