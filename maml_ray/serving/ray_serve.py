"""Deploy the service on Ray Serve: one policy store, replicas that act, and adapters.

    caller -> PolicyApi (replicas) -- look up a policy --> PolicyStore (one, loads the run)
                         \\-- adapt --> Adapter (one request at a time each)

Every replica must find every adapted policy, and their total number and age are bounded. So one
deployment with one replica stores them, in its memory and in the run's storage, where they outlive
it, and the others cache them for a second (:mod:`maml_ray.serving.cache`). ``@serve.multiplexed``
would route callers to a replica that has their policy, but bounds only what each replica stores,
and would still need a store to load from.
Only the store reads the run: the other processes need no access to its storage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from maml_ray.monitoring.ray_export import export_in_background
from maml_ray.monitoring.service_metrics import ServiceMetrics
from maml_ray.serving.adaptation import AdaptResponse, handle_adapt_request
from maml_ray.serving.batching import ActBatcher
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.http.access import load_token_digest
from maml_ray.serving.http.api import ApiBackend, make_app
from maml_ray.serving.http.bodies import BASE_POLICY
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.instrumentation import AccessLog
from maml_ray.serving.policy_store import LookupResult, PolicyStore, open_store
from maml_ray.serving.served_policy import ServedPolicy, load_base_policy
from maml_ray.serving.settings import ServeSettings, parse_serve_settings, parse_user_config
from maml_ray.tasks.loading import import_modules

STORE_TIMEOUT_S = 10.0
MAX_CACHED_POLICIES = 1000
_MAX_CONCURRENT_REQUESTS = 1000
"""Per replica: requests wait for their bodies, for the store, and for others to be batched with. A
few hundred half-sent ones must not keep out probes until their deadline."""


class StoreDeployment:
    """The deployment ``PolicyStore``: loads the run and stores the adapted policies.

    Its ``user_config`` names the live checkpoint; changing it loads that checkpoint and keeps the
    adapted policies.

    Args:
        settings: settings of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._store: PolicyStore | None = None

    def reconfigure(self, user_config: Any) -> None:
        """Load a checkpoint as the base policy; Serve also calls this at the start.

        Raises:
            UserError: there is no such checkpoint; Serve shows it in the application's status.
        """
        settings = self._settings
        base = load_base_policy(settings.run, parse_user_config(user_config).checkpoint)
        if self._store is None:
            self._store = store = open_store(settings, base)
            metrics = ServiceMetrics()
            metrics.measure_store(store.__len__, lambda: bool(store.warnings))
            export_in_background(metrics.samples)
        else:
            self._store.replace_base(base)

    async def get(self, name: str, cached_name: str | None) -> LookupResult | ApiError:
        """Return a policy by name; see :meth:`maml_ray.serving.policy_store.PolicyStore.find`."""
        try:
            return await self._configured_store.find(name, cached_name)
        except ApiError as error:
            return error

    async def add(self, policy: ServedPolicy) -> float:
        """Add an adapted policy and return its lifetime in seconds."""
        return await self._configured_store.save(policy)

    async def read_warnings(self) -> list[str]:
        """Return what operators should know of the storage of adapted policies."""
        return self._configured_store.warnings

    @property
    def _configured_store(self) -> PolicyStore:
        assert self._store is not None, "Serve calls reconfigure before any request"
        return self._store


class AdapterDeployment:
    """The deployment ``Adapter``: simulates and takes inner steps, one request at a time.

    Args:
        settings: settings of the service.
        store: handle of the policy store.
    """

    def __init__(self, settings: ServeSettings, store: DeploymentHandle[Any]) -> None:
        torch.set_num_threads(1)
        import_modules(settings.imports, settings.run)
        self._settings = settings
        look_up = partial(_look_up, store)
        self._policies = PolicyCache(look_up, max_policies=MAX_CACHED_POLICIES)
        # One thread: a request whose caller has given up still ends before the next one starts.
        self._thread = ThreadPoolExecutor(1)

    async def adapt(self, content: bytes) -> AdaptResponse | ApiError:
        """Adapt in a thread, so that the replica still answers Serve's health checks.

        Args:
            content: body of the request.
        """
        loop = asyncio.get_running_loop()

        def find_policy(name: str) -> ServedPolicy:
            return asyncio.run_coroutine_threadsafe(self._policies.get(name), loop).result()

        adapt = partial(
            handle_adapt_request,
            content,
            find_policy,
            limits=self._settings.limits,
            max_env_steps=self._settings.max_env_steps,
        )
        return await loop.run_in_executor(self._thread, adapt)


class ApiDeployment:
    """The deployment ``PolicyApi``: serves the routes, acts itself, and delegates adaptation.

    Args:
        settings: settings of the service.
        token_digest: SHA-256 of the token that callers must present; None to require none.
        store, adapter: handles of the other two deployments.
    """

    def __init__(
        self,
        settings: ServeSettings,
        token_digest: bytes | None,
        store: DeploymentHandle[Any],
        adapter: DeploymentHandle[Any],
    ) -> None:
        torch.set_num_threads(1)
        import_modules(settings.imports, settings.run)
        self._settings, self._token_digest = settings, token_digest
        self._store, self._adapter = store, adapter
        self._metrics = ServiceMetrics()
        export_in_background(self._metrics.samples)
        look_up = partial(_look_up, store)
        self._policies = PolicyCache(look_up, max_policies=MAX_CACHED_POLICIES)

    async def __serve_build_asgi_app__(self) -> Any:
        """Build the routes, once the store has sent the policy whose sizes they document."""
        base = await self._policies.get(BASE_POLICY)
        # Load the compiled kernels now, so that no request waits for them.
        base.agent.act(np.zeros(base.agent.spec.observation_size))
        backend = ApiBackend(
            base.agent.spec,
            base.agent.context_size,
            base.example_task,
            self._policies,
            ActBatcher(self._metrics.batch_answered),
            adapt=self._adapt,
            add_policy=self._add_policy,
            storage_warnings=self._storage_warnings,
            metrics=self._metrics,
        )
        return make_app(
            backend,
            token_digest=self._token_digest,
            limits=self._settings.limits,
            access_log=AccessLog() if self._settings.access_log else None,
        )

    async def _adapt(self, content: bytes | bytearray) -> AdaptResponse | ApiError:
        reply = self._adapter.adapt.remote(bytes(content))
        timeout_s = self._settings.adapt_timeout_s
        response: AdaptResponse | ApiError = await _wait_for(reply, "adapter", timeout_s)
        return response

    async def _add_policy(self, policy: ServedPolicy) -> float:
        add = self._store.add.remote
        try:
            return float(await _wait_for(add(policy), "policy store", STORE_TIMEOUT_S))
        except ApiError:  # its node may be lost: Serve starts it again on another
            timeout_s = self._settings.adapt_timeout_s
            return float(await _wait_for(add(policy), "policy store", timeout_s))

    async def _storage_warnings(self) -> list[str]:
        reply = self._store.read_warnings.remote()
        return list(await _wait_for(reply, "policy store", STORE_TIMEOUT_S))


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application; :class:`ServeSettings` lists the arguments.

    For ``serve run maml_ray.serving.ray_serve:build_app run=...`` and for the ``args`` of a
    config file. The token is read where this runs: on the cluster with ``serve deploy``.

    Raises:
        UserError: an argument is unknown or out of range, or the token cannot be read.
    """
    settings = parse_serve_settings(args)
    token_digest = load_token_digest(settings.token_file)
    store = _deployment(
        StoreDeployment,
        name="PolicyStore",
        num_replicas=1,  # the policies are stored in one process
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10 * _MAX_CONCURRENT_REQUESTS,
        user_config={"checkpoint": settings.checkpoint},
    ).bind(settings)
    adapter = _deployment(
        AdapterDeployment,
        name="Adapter",
        num_replicas=settings.adapters,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=settings.stop_timeout_s,
        max_ongoing_requests=1,
        max_queued_requests=settings.max_waiting,
    ).bind(settings, store)
    app: serve.Application = _deployment(
        serve.ingress()(ApiDeployment),
        name="PolicyApi",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=settings.stop_timeout_s,
        max_ongoing_requests=_MAX_CONCURRENT_REQUESTS,
    ).bind(settings, token_digest, store, adapter)
    return app


def _deployment(cls: type, **options: Any) -> Any:
    return serve.deployment(**options)(cls)


async def _look_up(
    store: DeploymentHandle[Any], name: str, cached_name: str | None
) -> LookupResult | ApiError:
    reply = store.get.remote(name, cached_name)
    result: LookupResult | ApiError = await _wait_for(reply, "policy store", STORE_TIMEOUT_S)
    return result


async def _wait_for(reply: Any, name: str, timeout_s: float) -> Any:
    """Return the reply of another deployment.

    Raises:
        ApiError: the deployment is busy, unavailable or too slow (503).
    """
    try:
        return await asyncio.wait_for(reply, timeout_s)
    except BackPressureError:
        raise ApiError(503, f"too many requests wait for the {name}: try again later") from None
    except TimeoutError:
        raise ApiError(503, f"the {name} did not answer within {timeout_s:g} s") from None
    except (RayError, RayServeException) as error:
        if isinstance(getattr(error, "cause", None), Exception):
            raise  # a defect in the deployment: its traceback belongs in the log
        raise ApiError(503, f"the {name} is unavailable: try again later") from None
