"""Cache policies of the store in each replica.

An entry is used for one second before the store is asked again: one lookup per second serves
thousands of actions, and a policy that the store removes or replaces is gone from every replica
within that second. While the store cannot answer, after its node has died for example, the cached
policies are used until they expire, so that acting does not depend on it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_store import LookupResult
from maml_ray.serving.served_policy import ServedPolicy

CACHE_TTL_S = 1.0
STORE_PATIENCE_S = 0.25
"""Longest time that a request for a cached policy waits for the store to confirm it."""

Lookup = Callable[[str, str | None], Awaitable[LookupResult | ApiError]]
"""Asks the store for a policy by name, given the name of the policy that is cached already.

Returns an error that is the store's answer, and raises one if the store does not answer."""


@dataclass(frozen=True)
class _Entry:
    policy: ServedPolicy
    confirm_at: float
    expires_at: float


class PolicyCache:
    """Cache policies by the name under which they were requested.

    Args:
        lookup: asks the store.
        max_policies: maximum number of entries; beyond it, the one looked up longest ago goes.
        clock: returns the time in seconds.
        patience_s: longest time that a request for a cached policy waits for the store.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        max_policies: int,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = STORE_PATIENCE_S,
    ) -> None:
        self._lookup, self._max_policies, self._clock = lookup, max_policies, clock
        self._patience_s = patience_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[ServedPolicy]] = {}

    async def get(self, name: str) -> ServedPolicy:
        """Return the policy called ``name``.

        Raises:
            ApiError: the store has no such policy, or does not answer and the policy is not cached.
        """
        if (policy := self.get_cached(name)) is not None:
            return policy
        if name not in self._lookups:  # concurrent requests share one lookup
            self._lookups[name] = asyncio.ensure_future(self._refresh(name))
            self._lookups[name].add_done_callback(lambda done: self._lookup_done(name, done))
        lookup, entry = self._lookups[name], self._entries.get(name)
        if entry is not None and self._clock() < entry.expires_at:
            await asyncio.wait({lookup}, timeout=self._patience_s)
            if not lookup.done():
                return self._keep_unconfirmed(name, entry)
        # Shielded: a caller that disconnects must not cancel the lookup of the others.
        return await asyncio.shield(lookup)

    def get_cached(self, name: str) -> ServedPolicy | None:
        """Return the policy called ``name`` if the store need not be asked; else None."""
        entry = self._entries.get(name)
        return entry.policy if entry is not None and self._clock() < entry.confirm_at else None

    async def _refresh(self, name: str) -> ServedPolicy:
        entry, start = self._entries.get(name), self._clock()
        try:
            result = await self._lookup(name, entry.policy.name if entry else None)
        except ApiError:
            if entry is None or self._clock() >= entry.expires_at:
                raise
            return self._keep_unconfirmed(name, entry)
        if isinstance(result, ApiError):
            self._entries.pop(name, None)
            raise result
        policy = result.policy or (entry.policy if entry else None)
        assert policy is not None, "the store omits only a policy that is cached"
        lifetime_s = math.inf if result.expires_in_s is None else result.expires_in_s
        confirm_at = start + min(CACHE_TTL_S, lifetime_s)
        return self._keep(name, _Entry(policy, confirm_at, start + lifetime_s))

    def _keep_unconfirmed(self, name: str, entry: _Entry) -> ServedPolicy:
        confirm_at = min(self._clock() + CACHE_TTL_S, entry.expires_at)
        return self._keep(name, replace(entry, confirm_at=confirm_at))

    def _keep(self, name: str, entry: _Entry) -> ServedPolicy:
        self._entries[name] = entry
        self._entries.move_to_end(name)
        while len(self._entries) > self._max_policies:
            self._entries.popitem(last=False)
        return entry.policy

    def _lookup_done(self, name: str, lookup: asyncio.Task[ServedPolicy]) -> None:
        self._lookups.pop(name, None)
        if not lookup.cancelled():
            lookup.exception()  # retrieved: it may fail when no request waits for it any more
