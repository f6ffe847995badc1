"""Keep a bounded number of policies: in memory, and in an archive that outlives the process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from maml_ray.common.errors import error_reason
from maml_ray.serving.http.bodies import BASE_POLICY
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_archive import ArchiveWriter, PolicyArchive, open_archive
from maml_ray.serving.served_policy import ServedPolicy, creation_time
from maml_ray.serving.settings import ServeSettings

ARCHIVE_TIMEOUT_S = 5.0
"""Time limit for reading a policy from the archive, and for waiting until one is written: an
adaptation is answered anyway."""
_READERS = 4
"""Threads that read from the archive."""

_log = logging.getLogger(__name__)


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
    """Keep the base policy and a bounded number of adapted ones; the least recently used go first.

    :meth:`add` and :meth:`get` use the memory only; :meth:`save` and :meth:`find` the archive too.

    Args:
        base: the policy that adaptations start from by default.
        max_policies: maximum number of adapted policies.
        max_age_s: seconds from a policy's creation to its removal.
        clock: returns the Unix time in seconds.
        archive: keeps adapted policies beyond the life of the process; None for memory only.
        archive_timeout_s: time limit of reading from the archive and of waiting for a write.
    """

    def __init__(
        self,
        base: ServedPolicy,
        *,
        max_policies: int,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
        archive: PolicyArchive | None = None,
        archive_timeout_s: float = ARCHIVE_TIMEOUT_S,
    ) -> None:
        self._base = base
        self._max_policies, self._max_age_s, self._clock = max_policies, max_age_s, clock
        self._adapted: OrderedDict[str, tuple[ServedPolicy, float]] = OrderedDict()
        self._archive, self._archive_timeout_s = archive, archive_timeout_s
        self._writer = None if archive is None else ArchiveWriter(archive, self._names)
        self._readers = ThreadPoolExecutor(_READERS, "policy-archive-reader")
        self._reads: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        oldest = self._clock() - self._max_age_s  # removes nothing: any thread may ask
        return sum(created > oldest for _, created in list(self._adapted.values()))

    def replace_base(self, base: ServedPolicy) -> None:
        """Replace the base policy; the old one stays available by name until it expires."""
        previous, self._base = self._base, base
        self._adapted.pop(base.name, None)
        if previous.name != base.name:
            self.add(previous)

    @property
    def warnings(self) -> list[str]:
        """What operators should know of the archive, without paths."""
        if self._writer is None:
            return ["adapted policies are kept in memory only: there is no run to keep them in"]
        if self._writer.is_failing:
            return [
                "adapted policies are kept in memory only: the run's storage cannot be used, see "
                "the service's log"
            ]
        return []

    async def read_warnings(self) -> list[str]:
        """Return :attr:`warnings`, as other processes ask for them."""
        return self.warnings

    async def save(self, policy: ServedPolicy) -> float:
        """Add a policy to the memory and the archive; return its lifetime in seconds.

        When this returns it is in the archive, unless the archive fails or takes too long: then it
        is in memory, the log and :attr:`warnings` say so, and it is written later if possible.
        """
        lifetime_s = self.add(policy)
        if self._archive and self._writer and self._archive.may_hold(policy.name):
            attempt = asyncio.wrap_future(self._writer.submit(policy))
            if not self._writer.is_failing:
                done, _ = await asyncio.wait({attempt}, timeout=self._archive_timeout_s)
                if not done:
                    self._writer.note_failure(f"no answer within {self._archive_timeout_s:g} s")
        return lifetime_s

    async def find(self, name: str, cached_name: str | None = None) -> LookupResult:
        """Return a policy by name, from the memory or else from the archive.

        Args:
            name, cached_name: as for :meth:`get`.

        Raises:
            ApiError: there is no such policy, it has expired, or the archive fails (503).
        """
        if self._archive is not None and name not in self._adapted and self._archive.may_hold(name):
            if name not in self._reads:  # concurrent requests share one read
                read = asyncio.ensure_future(self._read(self._archive, name))
                self._reads[name] = read
                read.add_done_callback(lambda done: self._reads.pop(name, None))
            # Shielded: a caller that disconnects must not cancel the read of the others.
            await asyncio.shield(self._reads[name])
        return self.get(name, cached_name)

    def add(self, policy: ServedPolicy) -> float:
        """Add a policy to the memory and return its lifetime in seconds."""
        created_at = creation_time(policy.name) or self._clock()
        self._adapted[policy.name] = (policy, created_at)
        self._adapted.move_to_end(policy.name)
        self._remove_expired()
        while len(self._adapted) > self._max_policies:
            self._adapted.popitem(last=False)
        return self._max_age_s - (self._clock() - created_at)

    def get(self, name: str, cached_name: str | None = None) -> LookupResult:
        """Return a policy in memory by name; ``base`` is the live checkpoint.

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

    async def _read(self, archive: PolicyArchive, name: str) -> None:
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._readers, archive.read, name)
        try:
            policy = await asyncio.wait_for(reading, self._archive_timeout_s)
        except OSError as error:  # TimeoutError is one
            if self._writer is not None:
                self._writer.note_failure(error_reason(error))
            raise ApiError(
                503, "the storage of the adapted policies does not answer: try again later"
            ) from None
        if policy is not None and policy.agent.spec == self._base.agent.spec:
            self.add(policy)

    def _names(self) -> Collection[str]:
        return list(self._adapted)

    def _remove_expired(self) -> None:
        oldest = self._clock() - self._max_age_s
        for name in [name for name, (_, created) in self._adapted.items() if created <= oldest]:
            del self._adapted[name]


def open_store(settings: ServeSettings, base: ServedPolicy) -> PolicyStore:
    """Return the store of a service, with the archive in its run's storage.

    Raises:
        UserError: the run is not there.
    """
    max_policies, max_age_s = settings.max_policies, settings.max_age_s
    archive = open_archive(settings.run, max_policies=max_policies, max_age_s=max_age_s)
    if archive is None:
        _log.warning(
            "%s holds a policy without its run: policies adapted from it are kept in memory only, "
            "and are lost if the service ends",
            settings.run,
        )
    return PolicyStore(base, max_policies=max_policies, max_age_s=max_age_s, archive=archive)
