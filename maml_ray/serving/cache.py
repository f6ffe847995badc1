"""A replica's copies of policies that the store has.

A copy is used for a second before the store is asked whether it still holds: so one question a
second pays for thousands of actions, and what the store removes or replaces is gone from every
replica within that second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from maml_ray.serving.policy_store import LookupResult, ServedPolicy
from maml_ray.serving.requests import ApiError

CACHE_TTL_S = 1.0

Ask = Callable[[str, str | None], Awaitable[LookupResult | ApiError]]
"""Asks the store: the name of a policy, and the name of what is here already."""


@dataclass
class _Copy:
    policy: ServedPolicy
    until: float


class PolicyCache:
    """Policies by the name that they were asked for.

    Args:
        ask: the store.
        most: how many are kept.
        clock: tells seconds.
    """

    def __init__(self, ask: Ask, *, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._most, self._clock = ask, most, clock
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._asking: dict[str, asyncio.Task[ServedPolicy]] = {}

    async def get(self, name: str) -> ServedPolicy:
        """The policy called ``name``.

        Raises:
            ApiError: the store has none of that name.
        """
        copy = self._copies.get(name)
        if copy is not None and self._clock() < copy.until:
            return copy.policy
        if name not in self._asking:  # once for all that wait for it
            task = asyncio.ensure_future(self._renewed(name))
            self._asking[name] = task
            task.add_done_callback(lambda done: self._asking.pop(name, None))
        return await asyncio.shield(self._asking[name])

    async def _renewed(self, name: str) -> ServedPolicy:
        copy = self._copies.pop(name, None)
        asked = self._clock()
        found = await self._ask(name, copy.policy.name if copy else None)
        if isinstance(found, ApiError):
            raise found
        policy = found.policy if copy is None else found.policy or copy.policy
        assert policy is not None, "the store leaves out only what is here"
        lease = CACHE_TTL_S if found.expires_in_s is None else min(CACHE_TTL_S, found.expires_in_s)
        self._copies[name] = _Copy(policy, asked + lease)
        while len(self._copies) > self._most:
            self._copies.popitem(last=False)
        return policy
