"""The service in one process, without Ray, behind a real HTTP server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from maml_ray.evaluation.agent import Agent
from maml_ray.serving.adaptation import AdaptResult, handle_adapt_request
from maml_ray.serving.api import make_app
from maml_ray.serving.batching import ActResult, act_batch
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.policy_store import LookupResult, PolicyStore, ServedPolicy
from maml_ray.serving.requests import ActRequest, AdaptBody, ApiError
from maml_ray.serving.service import Service

MOST_ENV_STEPS = 5_000


def store_of(agent: Agent, most: int = 50) -> PolicyStore:
    return PolicyStore(ServedPolicy("checkpoint-1", agent), most=most, max_age_s=1000.0)


def service_of(agent: Agent, store: PolicyStore | None = None) -> Service:
    kept = store_of(agent) if store is None else store

    async def ask(name: str, have: str | None) -> LookupResult | ApiError:
        try:
            return kept.find(name, have)
        except ApiError as refusal:
            return refusal

    async def act_on(policy: ServedPolicy, request: ActRequest) -> ActResult | ApiError:
        return act_batch([(policy, request)])[0]

    async def adapt_from(policy: ServedPolicy, request: AdaptBody) -> AdaptResult | ApiError:
        return handle_adapt_request(policy, request, most_env_steps=MOST_ENV_STEPS)

    async def keep(policy: ServedPolicy) -> float:
        return kept.keep(policy)

    task = dict(agent.sample_tasks(1)[0].parameters)
    return Service(agent.spec, task, PolicyCache(ask, most=50), act_on, adapt_from, keep)


@contextmanager
def served(
    service: Service, *, digest: bytes | None = None, max_body_bytes: int = 1_000_000
) -> Iterator[str]:
    """The URL of ``service``."""
    app = make_app(service, digest=digest, max_body_bytes=max_body_bytes)
    with running(app) as url:
        yield url


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of an ASGI application."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    bound = config.bind_socket()
    bound.listen(64)  # whoever comes before the server has begun waits
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
