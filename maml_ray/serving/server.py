"""Serve in one process without Ray: uvicorn, the HTTP API, and worker processes that adapt."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import uvicorn

from maml_ray.serving.adaptation import handle_adapt_request
from maml_ray.serving.adapter_pool import AdapterPool, Handle
from maml_ray.serving.batching import ActBatcher
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.endpoint import Endpoint, listen, url_of
from maml_ray.serving.http.access import load_token_digest
from maml_ray.serving.http.api import ApiBackend, make_app
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.metrics import POLICIES, STORAGE_FAILING, ServiceMetrics
from maml_ray.serving.policy_store import LookupResult, open_store
from maml_ray.serving.served_policy import ServedPolicy
from maml_ray.serving.settings import ServeSettings
from maml_ray.tasks.loading import import_modules

STOP_TIMEOUT_S = 5.0
"""Seconds that requests in progress have after a signal."""


def serve_until_stopped(
    settings: ServeSettings,
    base: ServedPolicy,
    *,
    host: str,
    port: int,
    on_ready: Callable[[Endpoint], None],
) -> None:
    """Serve until a signal arrives, which is raised again once requests in progress are answered.

    Args:
        settings: settings of the service.
        base: the policy that adaptations start from by default.
        host, port: address to listen on.
        on_ready: called once the service accepts requests.

    Raises:
        UserError: the port is taken, or the token cannot be read.
    """
    token_digest = load_token_digest(settings.token_file)
    with listen(host, port) as bound, local_backend(settings, base) as backend:
        app = make_app(backend, token_digest=token_digest, limits=settings.limits)
        server = make_server(app, lambda: on_ready(Endpoint(url_of(host, port))))
        server.run(sockets=[bound])


@contextmanager
def local_backend(settings: ServeSettings, base: ServedPolicy) -> Iterator[ApiBackend]:
    """Yield a backend that acts in this process and adapts in processes of its own."""
    torch.set_num_threads(1)
    store, metrics = open_store(settings, base), ServiceMetrics()
    metrics.set_gauge(POLICIES, lambda: len(store))
    metrics.set_gauge(STORAGE_FAILING, lambda: bool(store.warnings))

    async def look_up(name: str, cached_name: str | None) -> LookupResult | ApiError:
        try:
            return await store.find(name, cached_name)
        except ApiError as error:
            return error

    # Load the compiled kernels now, so that no request waits for them.
    base.agent.act(np.zeros(base.agent.spec.observation_size))
    with AdapterPool(
        partial(_make_handle, settings),
        size=settings.adapters,
        max_waiting=settings.max_waiting,
        timeout_s=settings.adapt_timeout_s,
    ) as adapters:
        yield ApiBackend(
            base.agent.spec,
            base.example_task,
            PolicyCache(look_up, max_policies=settings.max_policies),
            act=ActBatcher(metrics.batch_answered).act,
            adapt=adapters.adapt,
            add_policy=store.save,
            storage_warnings=store.read_warnings,
            metrics=metrics,
        )


def make_server(app: object, on_ready: Callable[[], None]) -> uvicorn.Server:
    """Return a server of an ASGI application, to be run with a socket that listens.

    Args:
        app: the application.
        on_ready: called once the server accepts connections.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="auto",  # uvloop where it is installed
        http="auto",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(STOP_TIMEOUT_S),
    )
    return _Server(config, on_ready)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def _make_handle(settings: ServeSettings) -> Handle:
    """Prepare a worker process to adapt."""
    torch.set_num_threads(1)
    import_modules(settings.imports, settings.run)
    return partial(handle_adapt_request, max_env_steps=settings.max_env_steps)
