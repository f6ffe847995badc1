"""Keep a bounded number of policies in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from maml_ray.serving.http.bodies import BASE_POLICY
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy


@dataclass(frozen=True, eq=False)
class LookupResult:
    """A policy found in the store.

    Attributes:
        name: its own name; that of a checkpoint if the base policy was requested.
        expires_in_s: seconds until it is removed; None for the base policy.
        policy: the policy; None if the requester has it already.
    """

    name: str
    expires_in_s: float | None
    policy: ServedPolicy | None


class PolicyStore:
    """The base policy and a bounded number of adapted ones, least recently used removed first.

    Args:
        base: the policy that adaptations start from by default.
        max_policies: maximum number of adapted policies.
        max_age_s: seconds from a policy's creation to its removal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        base: ServedPolicy,
        *,
        max_policies: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._max_policies, self._max_age_s, self._clock = max_policies, max_age_s, clock
        self._adapted: OrderedDict[str, tuple[ServedPolicy, float]] = OrderedDict()

    def __len__(self) -> int:
        self._remove_expired()
        return len(self._adapted)

    def replace_base(self, base: ServedPolicy) -> None:
        """Replace the base policy; the old one stays available by name until it expires."""
        previous, self._base = self._base, base
        self._adapted.pop(base.name, None)
        if previous.name != base.name:
            self.add(previous)

    def add(self, policy: ServedPolicy) -> float:
        """Add a policy and return its maximum lifetime in seconds."""
        self._adapted[policy.name] = (policy, self._clock())
        self._adapted.move_to_end(policy.name)
        self._remove_expired()
        while len(self._adapted) > self._max_policies:
            self._adapted.popitem(last=False)
        return self._max_age_s

    def get(self, name: str, cached_name: str | None = None) -> LookupResult:
        """Return a policy by name; ``base`` is the live checkpoint.

        Args:
            name: name of the policy.
            cached_name: name of the policy that the requester has and need not be sent again.

        Raises:
            ApiError: there is no such policy, or it has expired.
        """
        if name in (BASE_POLICY, self._base.name):
            policy, expires_in_s = self._base, None
        else:
            self._remove_expired()
            if name not in self._adapted:
                raise ApiError(
                    404,
                    f"policy: {name!r:.80} is unknown or has expired (the service keeps the "
                    f"{self._max_policies:,} most recently used, for {self._max_age_s:,.0f} s): "
                    "create one with POST /adapt",
                )
            policy, created_at = self._adapted[name]
            self._adapted.move_to_end(name)
            expires_in_s = self._max_age_s - (self._clock() - created_at)
        return LookupResult(
            policy.name, expires_in_s, None if policy.name == cached_name else policy
        )

    def _remove_expired(self) -> None:
        oldest = self._clock() - self._max_age_s
        for name in [name for name, (_, created) in self._adapted.items() if created <= oldest]:
            del self._adapted[name]
