"""Run the service in one process without Ray, behind a real HTTP server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import uvicorn

from maml_ray.evaluation.agent import Agent
from maml_ray.serving.adaptation import AdaptResponse, handle_adapt_request
from maml_ray.serving.batching import ActBatcher
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.http.act_protocol import act_protocol
from maml_ray.serving.http.api import ApiBackend, make_app
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.instrumentation import AccessLog
from maml_ray.serving.http.limits import RequestLimits
from maml_ray.serving.policy_store import LookupResult, PolicyStore
from maml_ray.serving.served_policy import ServedPolicy
from maml_ray.serving.settings import ServeSettings

MAX_ENV_STEPS = 5_000
LIMITS = ServeSettings(run="unused").limits


def store_of(agent: Agent, max_policies: int = 50) -> PolicyStore:
    return PolicyStore(
        ServedPolicy("checkpoint-1", agent), max_policies=max_policies, max_age_s=1000.0
    )


def adapt_locally(
    content: bytes | bytearray, policies: PolicyStore, limits: RequestLimits
) -> AdaptResponse | ApiError:
    """Answer a request to adapt in this process."""

    def find_policy(name: str) -> ServedPolicy:
        policy = policies.get(name).policy
        assert policy is not None
        return policy

    return handle_adapt_request(content, find_policy, limits=limits, max_env_steps=MAX_ENV_STEPS)


def backend_of(
    agent: Agent, store: PolicyStore | None = None, limits: RequestLimits = LIMITS
) -> ApiBackend:
    policies = store_of(agent) if store is None else store

    async def look_up(name: str, cached_name: str | None) -> LookupResult | ApiError:
        try:
            return policies.get(name, cached_name)
        except ApiError as error:
            return error

    async def adapt(content: bytes | bytearray) -> AdaptResponse | ApiError:
        return adapt_locally(content, policies, limits)

    async def add_policy(policy: ServedPolicy) -> float:
        return policies.add(policy)

    async def storage_warnings() -> list[str]:
        return []

    task = dict(agent.sample_tasks(1)[0].parameters)
    return ApiBackend(
        agent.spec,
        agent.context_size,
        task,
        PolicyCache(look_up, max_policies=50),
        ActBatcher(),
        adapt,
        add_policy,
        storage_warnings,
    )


@contextmanager
def served(
    backend: ApiBackend,
    *,
    token_digest: bytes | None = None,
    access_log: AccessLog | None = None,
    only_asgi: bool = False,
    **limits: Any,
) -> Iterator[str]:
    """Yield the URL of a server of ``backend``, with limits other than the defaults.

    With ``only_asgi`` it is an ordinary server of the application, as in Ray Serve.
    """
    chosen = replace(LIMITS, **limits)
    options: dict[str, Any] = {"token_digest": token_digest, "access_log": access_log}
    app = make_app(backend, limits=chosen, **options)
    protocol = act_protocol(backend, limits=chosen, max_connections=500, **options)
    with running(app, "auto" if only_asgi else protocol) as url:
        yield url


@contextmanager
def running(app: Any, http: Any = "auto") -> Iterator[str]:
    """Yield the URL of a server of an ASGI application."""
    config = uvicorn.Config(
        app,
        http=http,
        host="127.0.0.1",
        port=0,
        log_level="error",
        lifespan="off",
        timeout_keep_alive=3600,  # a connection that ends was ended by what is tested
    )
    server = uvicorn.Server(config)
    bound = config.bind_socket()
    bound.listen(64)  # connections before the server starts wait
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
