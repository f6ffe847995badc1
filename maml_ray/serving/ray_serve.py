"""The service on Ray Serve: one store, any number of replicas that act, adapters beside them.

    caller -> PolicyApi (replicas) -- which policy? --> PolicyStore (one, holds the run)
                         \\-- adapt --> Adapter (one request at a time each)

Every replica must find every adapted policy, and their number and age are bounded in all. So one
deployment of one replica keeps them, and the others keep copies for a second
(:mod:`maml_ray.serving.cache`). ``@serve.multiplexed`` would route callers to a replica that has
their policy, but bounds only what each replica holds, and would still need a place to load from.
The run is read there alone: the other processes need not see its storage.
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

from maml_ray.serving.adaptation import AdaptResult, handle_adapt_request
from maml_ray.serving.api import make_app
from maml_ray.serving.auth import load_token_digest
from maml_ray.serving.batching import ActResult, act_batch
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.policy_store import LookupResult, PolicyStore, ServedPolicy, load_base_policy
from maml_ray.serving.requests import BASE_POLICY, ActRequest, AdaptBody, ApiError
from maml_ray.serving.service import Service
from maml_ray.serving.settings import ServeSettings, parse_serve_settings, parse_user_config

STORE_TIMEOUT_S = 10.0
"""Deadline for an answer of the store."""
MAX_CACHED_POLICIES = 1000
MAX_BATCH_SIZE = 64
"""Requests that are answered by one pass through a network."""
_MAX_CONCURRENT_REQUESTS = 256
"""Requests that a replica holds at a time: it waits for the store, and for others to batch with."""


class StoreDeployment:
    """The deployment ``PolicyStore``: reads the run, and keeps the adapted policies.

    Its ``user_config`` says which checkpoint is live: when it changes, the new one is put live
    and what is adapted stays.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._store: PolicyStore | None = None

    def reconfigure(self, user_config: Any) -> None:
        """Put a checkpoint live; called by Serve at the start too.

        Raises:
            UserError: there is no such checkpoint; Serve tells it in the application's status.
        """
        base = load_base_policy(self._settings.run, parse_user_config(user_config).checkpoint)
        if self._store is None:
            most, age = self._settings.max_policies, self._settings.max_age_s
            self._store = PolicyStore(base, most=most, max_age_s=age)
        else:
            self._store.replace_base(base)

    async def find(self, name: str, have: str | None) -> LookupResult | ApiError:
        """A policy by its name: :meth:`maml_ray.serving.policy_store.PolicyStore.find`."""
        try:
            return self._kept.find(name, have)
        except ApiError as refusal:
            return refusal

    async def keep(self, policy: ServedPolicy) -> float:
        """Keep an adapted policy."""
        return self._kept.keep(policy)

    @property
    def _kept(self) -> PolicyStore:
        assert self._store is not None, "Serve configures before it serves"
        return self._store


class AdapterDeployment:
    """The deployment ``Adapter``: simulates and takes inner steps, one request at a time.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        torch.set_num_threads(1)
        self._most_env_steps = settings.max_env_steps
        # One thread: a request that its caller has given up still ends before the next begins.
        self._thread = ThreadPoolExecutor(1)

    async def adapt(self, start: ServedPolicy, request: AdaptBody) -> AdaptResult | ApiError:
        """An adapted policy, or why there is none; in a thread, so that Serve sees it alive."""
        adapt = partial(handle_adapt_request, start, request, most_env_steps=self._most_env_steps)
        return await asyncio.get_running_loop().run_in_executor(self._thread, adapt)


class ApiDeployment:
    """The deployment ``PolicyApi``: the routes; acts by itself, and has others adapt.

    Args:
        settings: of the service.
        digest: of the token that callers must present.
        store, adapter: the other two deployments.
    """

    def __init__(
        self,
        settings: ServeSettings,
        digest: bytes | None,
        store: DeploymentHandle[Any],
        adapter: DeploymentHandle[Any],
    ) -> None:
        torch.set_num_threads(1)
        self._settings, self._digest = settings, digest
        self._store, self._adapter = store, adapter
        self._copies = PolicyCache(self._find, most=MAX_CACHED_POLICIES)

    async def __serve_build_asgi_app__(self) -> Any:
        """The routes, once the store has told what kind of policy it is."""
        base = await self._copies.get(BASE_POLICY)
        base.agent.act(np.zeros(base.agent.spec.observation_size))  # no request waits for its loop
        service = Service(
            base.agent.spec,
            base.example_task,
            self._copies,
            act_on=self._act_on,
            adapt_from=self._adapt_from,
            keep=self._keep,
        )
        limit = self._settings.max_body_bytes
        return make_app(service, digest=self._digest, max_body_bytes=limit)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.0)
    async def _act(
        self, asked: list[tuple[ServedPolicy, ActRequest]]
    ) -> list[ActResult | ApiError]:
        # Nobody waits for others to come: under load they are there already.
        return act_batch(asked)

    async def _act_on(self, policy: ServedPolicy, request: ActRequest) -> ActResult | ApiError:
        answer: ActResult | ApiError = await self._act((policy, request))
        return answer

    async def _adapt_from(self, policy: ServedPolicy, request: AdaptBody) -> AdaptResult | ApiError:
        deadline = self._settings.adapt_timeout_s
        response = self._adapter.adapt.remote(policy, request)
        adapted: AdaptResult | ApiError = await _answer(response, "adapter", deadline)
        return adapted

    async def _find(self, name: str, have: str | None) -> LookupResult | ApiError:
        response = self._store.find.remote(name, have)
        found: LookupResult | ApiError = await _answer(
            response, "store of policies", STORE_TIMEOUT_S
        )
        return found

    async def _keep(self, policy: ServedPolicy) -> float:
        return float(
            await _answer(self._store.keep.remote(policy), "store of policies", STORE_TIMEOUT_S)
        )


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """The application, of the arguments of :class:`~maml_ray.serving.settings.ServeSettings`.

    For ``serve run maml_ray.serving.ray_serve:build_app run=...`` and for the ``args`` of a
    config file. The token is read where this runs: on the cluster, under ``serve deploy``.

    Raises:
        UserError: an argument is unknown or out of range, or the token cannot be read.
    """
    settings = parse_serve_settings(args)
    digest = load_token_digest(settings.token_file)
    store = _deployed(
        StoreDeployment,
        name="PolicyStore",
        num_replicas=1,  # what it keeps is nowhere else
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10 * _MAX_CONCURRENT_REQUESTS,
        user_config={"checkpoint": settings.checkpoint},
    ).bind(settings)
    adapter = _deployed(
        AdapterDeployment,
        name="Adapter",
        num_replicas=settings.adapters,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=1,
        max_queued_requests=settings.max_waiting,
    ).bind(settings)
    app: serve.Application = _deployed(
        serve.ingress()(ApiDeployment),
        name="PolicyApi",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=_MAX_CONCURRENT_REQUESTS,
    ).bind(settings, digest, store, adapter)
    return app


def _deployed(kind: type, **options: Any) -> Any:
    return serve.deployment(**options)(kind)


async def _answer(response: Any, name: str, deadline_s: float) -> Any:
    """What another deployment answers.

    Raises:
        ApiError: it is busy, away or too slow.
    """
    try:
        return await asyncio.wait_for(response, deadline_s)
    except BackPressureError:
        raise ApiError(503, f"too many requests wait for the {name}: try again later") from None
    except TimeoutError:
        raise ApiError(503, f"the {name} did not answer within {deadline_s:g} s") from None
    except (RayError, RayServeException) as error:
        if isinstance(getattr(error, "cause", None), Exception):
            raise  # a defect there: it belongs in the log
        raise ApiError(503, f"the {name} is away: try again later") from None
