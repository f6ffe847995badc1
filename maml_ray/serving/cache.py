"""Cache policies of the store in each replica.

An entry is used for one second before the store is asked again: one lookup per second serves
thousands of actions, and a policy that the store removes or replaces is gone from every replica
within that second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_store import LookupResult
from maml_ray.serving.served_policy import ServedPolicy

CACHE_TTL_S = 1.0

Lookup = Callable[[str, str | None], Awaitable[LookupResult | ApiError]]
"""Asks the store for a policy by name, given the name of the policy that is cached already."""


@dataclass(frozen=True)
class _Entry:
    policy: ServedPolicy
    expires_at: float


class PolicyCache:
    """Policies by the name under which they were requested.

    Args:
        lookup: asks the store.
        max_policies: maximum number of entries; beyond it, the one looked up longest ago goes.
        clock: returns the time in seconds.
    """

    def __init__(
        self, lookup: Lookup, *, max_policies: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup, self._max_policies, self._clock = lookup, max_policies, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[ServedPolicy]] = {}

    async def get(self, name: str) -> ServedPolicy:
        """Return the policy called ``name``.

        Raises:
            ApiError: the store has no such policy.
        """
        if (policy := self.get_cached(name)) is not None:
            return policy
        if name not in self._lookups:  # concurrent requests share one lookup
            task = asyncio.ensure_future(self._refresh(name))
            self._lookups[name] = task
            task.add_done_callback(lambda done: self._lookups.pop(name, None))
        # Shielded: a caller that disconnects must not cancel the lookup of the others.
        return await asyncio.shield(self._lookups[name])

    def get_cached(self, name: str) -> ServedPolicy | None:
        """Return the policy called ``name`` if the store need not be asked; else None."""
        entry = self._entries.get(name)
        return entry.policy if entry is not None and self._clock() < entry.expires_at else None

    async def _refresh(self, name: str) -> ServedPolicy:
        entry = self._entries.pop(name, None)
        start = self._clock()
        result = await self._lookup(name, entry.policy.name if entry else None)
        if isinstance(result, ApiError):
            raise result
        policy = result.policy or (entry.policy if entry else None)
        assert policy is not None, "the store omits only a policy that is cached"
        ttl = CACHE_TTL_S if result.expires_in_s is None else min(CACHE_TTL_S, result.expires_in_s)
        self._entries[name] = _Entry(policy, start + ttl)
        while len(self._entries) > self._max_policies:
            self._entries.popitem(last=False)
        return policy
