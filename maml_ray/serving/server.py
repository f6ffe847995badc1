"""Serve in one process without Ray: uvicorn, the HTTP API, and worker processes that adapt."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from types import FrameType

import numpy as np
import torch
import uvicorn

from maml_ray.monitoring.service_metrics import ServiceMetrics
from maml_ray.serving.adaptation import handle_adapt_request
from maml_ray.serving.adapter_pool import AdapterPool, Handle
from maml_ray.serving.batching import ActBatcher
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.endpoint import Endpoint, listen, url_of
from maml_ray.serving.http.access import load_token_digest
from maml_ray.serving.http.act_protocol import act_protocol
from maml_ray.serving.http.api import ApiBackend, make_app
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.instrumentation import AccessLog
from maml_ray.serving.policy_store import LookupResult, open_store
from maml_ray.serving.served_policy import ServedPolicy
from maml_ray.serving.settings import ServeSettings
from maml_ray.tasks.loading import import_modules

LINGER_S = 0.5
"""Seconds after a signal in which requests on open connections are still answered: a client cannot
know that they are about to be closed."""
MAX_ACCEPTED = 16
"""Connections accepted in a turn of the event loop."""
_POLL_S = 0.02

_log = logging.getLogger(__name__)


def serve_until_stopped(
    settings: ServeSettings,
    base: ServedPolicy,
    *,
    host: str,
    port: int,
    on_ready: Callable[[Endpoint], None],
) -> None:
    """Serve until a signal arrives, which is raised again once requests in progress are answered.

    A second signal ends the process at once.

    Args:
        settings: settings of the service.
        base: the policy that adaptations start from by default.
        host, port: address to listen on.
        on_ready: called once the service accepts requests.

    Raises:
        UserError: the port is taken, or the token cannot be read.
        ResourceError: the process may not open as many files as ``max_connections`` needs.
    """
    token_digest = load_token_digest(settings.token_file)
    with (
        listen(host, port) as bound,
        local_backend(settings, base) as backend,
        closing(AccessLog()) if settings.access_log else nullcontext() as access_log,
    ):
        app = make_app(
            backend, token_digest=token_digest, limits=settings.limits, access_log=access_log
        )
        protocol = act_protocol(
            backend,
            token_digest=token_digest,
            access_log=access_log,
            max_connections=settings.max_connections,
            limits=settings.limits,
        )
        endpoint = Endpoint(url_of(host, port))
        server = make_server(app, protocol, lambda: on_ready(endpoint), settings.stop_timeout_s)
        server.run(sockets=[bound])


@contextmanager
def local_backend(settings: ServeSettings, base: ServedPolicy) -> Iterator[ApiBackend]:
    """Yield a backend that acts in this process and adapts in processes of its own."""
    torch.set_num_threads(1)
    store, metrics = open_store(settings, base), ServiceMetrics()
    metrics.measure_store(store.__len__, lambda: bool(store.warnings))

    async def look_up(name: str, cached_name: str | None) -> LookupResult | ApiError:
        try:
            return await store.find(name, cached_name)
        except ApiError as error:
            return error

    # Load the compiled kernels now, so that no request waits for them.
    base.agent.act(np.zeros(base.agent.spec.observation_size))
    policies = PolicyCache(look_up, max_policies=settings.max_policies)
    with AdapterPool(
        partial(_make_handle, settings),
        policies.get,
        size=settings.adapters,
        max_waiting=settings.max_waiting,
        timeout_s=settings.adapt_timeout_s,
    ) as adapters:
        yield ApiBackend(
            base.agent.spec,
            base.agent.context_size,
            base.example_task,
            policies,
            ActBatcher(metrics.batch_answered),
            adapt=adapters.adapt,
            add_policy=store.save,
            storage_warnings=store.read_warnings,
            metrics=metrics,
        )


def make_server(
    app: object,
    protocol: Callable[..., asyncio.Protocol],
    on_ready: Callable[[], None],
    stop_timeout_s: float,
) -> uvicorn.Server:
    """Return a server of an ASGI application, to be run with a socket that listens.

    Args:
        app: the application.
        protocol: uvicorn's ``http``.
        on_ready: called once the server accepts connections.
        stop_timeout_s: maximum seconds after a signal in which requests in progress are answered.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="auto",  # uvloop where it is installed
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # a warning for each invalid request would fill the disk
        access_log=False,
        server_header=False,
    )
    return _Server(config, on_ready, stop_timeout_s)


class _Server(uvicorn.Server):
    """uvicorn, which loses no request when it stops.

    On its own it closes connections on which the next request is on its way already.
    """

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], stop_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._on_ready, self._stop_timeout_s = on_ready, stop_timeout_s
        self._listening: list[socket.socket] = []
        self._connecting: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for listening in sockets or []:
            # libuv accepts one connection in a turn of the loop, which may answer many requests:
            # when many connect, new ones would wait for seconds. Not all at once, either: the
            # requests of the first ones are read before too many others come.
            self._listening.append(listening.dup())
            loop.add_reader(self._listening[-1], self._accept_waiting, self._listening[-1])
        self._on_ready()

    def _accept_waiting(self, listening: socket.socket) -> None:
        for accepted in islice(_accept_all(listening), MAX_ACCEPTED):
            task = asyncio.ensure_future(self._connect(accepted))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._protocol, accepted)
        except OSError:  # it is closed already
            accepted.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, answer one more request on each, and close them."""
        stop_at = time.monotonic() + self._stop_timeout_s
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        accepted = [each for listening in sockets or [] for each in _accept_all(listening)]
        for server in self.servers:
            server.close()
        state = self.server_state
        state.default_headers.append((b"connection", b"close"))  # the last in any answer
        for each in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, each)
        await self._until_closed(min(LINGER_S, self._stop_timeout_s))
        if state.tasks:
            _log.warning(
                "stopping: %d requests in progress are answered within %g s; a second signal ends "
                "the service at once",
                len(state.tasks),
                self._stop_timeout_s,
            )
        for connection in list(state.connections):
            connection.shutdown()  # at the end of the answer, if one is in progress
        await self._until_closed(stop_at - time.monotonic())
        for task in state.tasks:
            task.cancel()  # answered with 503
        await self._until_closed(LINGER_S if state.tasks else 0.0)

    async def _until_closed(self, timeout_s: float) -> None:
        """Wait until all connections are closed, for ``timeout_s`` at most."""
        end = time.monotonic() + timeout_s
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_all(listening: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections that have been made and not been accepted.

    What cannot be accepted, while too many files are open, is left to libuv, which closes it.
    """
    listening.setblocking(False)
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            connection.setblocking(False)
            yield connection


def _make_handle(settings: ServeSettings) -> Handle:
    """Prepare a worker process to adapt."""
    torch.set_num_threads(1)
    import_modules(settings.imports, settings.run)
    return partial(
        handle_adapt_request, limits=settings.limits, max_env_steps=settings.max_env_steps
    )
