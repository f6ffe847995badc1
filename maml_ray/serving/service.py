"""The service behind its routes: who does the work is handed in, so that it runs without Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from maml_ray.policies.spec import PolicySpec
from maml_ray.serving.adaptation import AdaptResult
from maml_ray.serving.batching import ActResult
from maml_ray.serving.cache import PolicyCache
from maml_ray.serving.policy_store import ServedPolicy
from maml_ray.serving.requests import (
    BASE_POLICY,
    ActRequest,
    AdaptBody,
    ApiError,
    parse_act,
    parse_adapt,
)

Act = Callable[[ServedPolicy, ActRequest], Awaitable[ActResult | ApiError]]
Adapt = Callable[[ServedPolicy, AdaptBody], Awaitable[AdaptResult | ApiError]]
Keep = Callable[[ServedPolicy], Awaitable[float]]


@dataclass(frozen=True, eq=False)
class Service:
    """What the routes call.

    Attributes:
        spec: sizes of every policy that is served.
        example_task: parameters of a task, for the documentation; None where there are none.
        copies: policies by name.
        act_on: answers a request to act, perhaps with others.
        adapt_from: serves a request to adapt, perhaps elsewhere.
        keep: keeps an adapted policy where every replica finds it; seconds that it stays.
    """

    spec: PolicySpec
    example_task: dict[str, float] | None
    copies: PolicyCache
    act_on: Act
    adapt_from: Adapt
    keep: Keep

    async def act(self, content: bytes) -> dict[str, Any]:
        """``POST /act``.

        Raises:
            ApiError: as every method here.
        """
        request = parse_act(content, self.spec)
        policy = await self.copies.get(request.policy)
        acted = await self.act_on(policy, request)
        if isinstance(acted, ApiError):
            raise acted
        answer: dict[str, Any] = {
            "policy": acted.policy,
            "actions": acted.actions[0] if request.single else acted.actions,
        }
        if acted.log_probs is not None:
            answer["log_probs"] = acted.log_probs[0] if request.single else acted.log_probs
        return answer

    async def adapt(self, content: bytes) -> dict[str, Any]:
        """``POST /adapt``."""
        request = parse_adapt(content)
        start = await self.copies.get(request.policy)
        adapted = await self.adapt_from(start, request)
        if isinstance(adapted, ApiError):
            raise adapted
        task = adapted.policy.task
        return {
            "policy": adapted.policy.name,
            "adapted_from": adapted.adapted_from,
            "expires_in_s": await self.keep(adapted.policy),
            "task": None if task is None else dict(task.parameters),
            "steps": [asdict(step) for step in adapted.steps],
            "return_before": adapted.return_before,
            "return_after": adapted.return_after,
        }

    async def policy(self, name: str) -> ServedPolicy:
        """``GET /policy/{name}``."""
        return await self.copies.get(name)

    async def health(self) -> dict[str, Any]:
        """``GET /healthz``: well, and with this policy live."""
        base = await self.copies.get(BASE_POLICY)
        return {"status": "ok", "policy": base.name, "task": base.agent.settings.task.name}
