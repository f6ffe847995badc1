"""Ensure that only the newest attempt at a run writes to its storage.

Two programs may carry on the same run at once: pods of an old cluster linger while a new one
starts, a node that was cut off returns, or two people resume the same ``s3://`` run. So each
attempt first writes a lease to the run's storage, ``attempts/<number>-<token>.json``. The greatest
name is the valid one, and every write and removal is preceded by a listing of the leases
(:class:`FencedStorage`): an attempt that sees a newer lease than its own stops, by
:class:`~maml_ray.common.errors.Superseded`.

Guaranteed if a listing shows a file as soon as it has been written (local directories, S3, Google's
and Azure's object stores, MinIO):

- Once an attempt has its lease, no older attempt begins another write or removal.
- The one request that an older attempt may have in flight at that moment is harmless. Parameters
  and learner state of the same run and iteration have the same bits, no matter which attempt
  writes them; from another kind of CPU they do not match the manifest, and the previous checkpoint
  is used. A removed checkpoint has newer ones after it. A stale ``best.json`` is corrected by the
  next score.
- If attempts begin at the same moment, exactly one stays. Leases have distinct names and never
  replace each other, so no compare-and-swap is needed, which not every store has.

Not guaranteed: if listings lag, as on NFS with cached attributes (mount it with ``noac``), an older
attempt writes until they catch up, the same bits as before. Files in the run directory alone,
``metrics.jsonl`` and TensorBoard's events, are protected on one machine by the directory's lock
(:mod:`maml_ray.persistence.file_lock`).
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from maml_ray.common.errors import RunDirError, Superseded
from maml_ray.persistence.storage import MAX_READ_BYTES, Storage

DIRECTORY = "attempts"
_NAME = re.compile(r"([0-9]{6,12})-([0-9a-f]{16})\.json")
_MAX_TRIES = 20
_KEEP = 10
"""Number of newest leases kept, as a record for people."""


@dataclass(frozen=True, order=True)
class Lease:
    """The right of one attempt at a run to write to its storage; the greatest lease is valid.

    Attributes:
        attempt: number of the attempt, counted from 1 over the whole life of the run.
        token: random, to tell apart two attempts that took the same number.
    """

    attempt: int
    token: str

    @property
    def name(self) -> str:
        """Name of its file in the storage."""
        return f"{DIRECTORY}/{self.attempt:06d}-{self.token}.json"


def acquire_lease(storage: Storage, *, above: int = 0, new: bool = False) -> Lease:
    """Begin an attempt that is newer than all others in ``storage``.

    Args:
        storage: storage of the run.
        above: the attempt's number is greater than this as well.
        new: require that no other attempt has begun the run.

    Raises:
        RunDirError: ``new``, and there are attempts already.
        OSError: the storage failed, or other attempts kept being faster.
    """
    for _ in range(_MAX_TRIES):
        leases = _list_leases(storage)
        if new and leases:
            raise RunDirError(
                f"{storage} belongs to another run: {_describe(storage, leases[-1])}; resume that "
                "one with --resume, or choose another name for this one"
            )
        newest = leases[-1].attempt if leases else 0
        lease = Lease(max(above, newest) + 1, secrets.token_hex(8))
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        content = {"attempt": lease.attempt, "host": socket.gethostname(), "since": since}
        storage.write(lease.name, json.dumps(content).encode())
        leases = _list_leases(storage)
        if leases and leases[-1] == lease:
            for old in leases[:-_KEEP]:
                with suppress(OSError):
                    storage.remove(old.name)
            return lease
        if new:
            storage.remove(lease.name)
    raise OSError(f"other attempts at the run in {storage} keep beginning at the same moment")


def verify_lease(storage: Storage, lease: Lease) -> None:
    """Check that ``lease`` is the valid one.

    Raises:
        Superseded: a newer attempt has begun.
        OSError: the storage failed, or no longer contains the lease.
    """
    leases = _list_leases(storage)
    if leases and leases[-1] > lease:
        raise Superseded(
            f"{_describe(storage, leases[-1])}: this one, attempt {lease.attempt}, stops and has "
            "written nothing since"
        )
    if lease not in leases:
        raise OSError(f"{storage} no longer holds {lease.name}: it has been emptied or unmounted")


class FencedStorage:
    """A storage that can be written to only while a lease is valid.

    Args:
        storage: storage of the run.
        lease: result of :func:`acquire_lease`.
    """

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self.storage = storage
        self.lease = lease

    def __str__(self) -> str:
        return str(self.storage)

    def write(self, name: str, content: bytes) -> None:
        """Implement :meth:`Storage.write`.

        Raises:
            Superseded: a newer attempt has begun; nothing has been written.
        """
        verify_lease(self.storage, self.lease)
        self.storage.write(name, content)

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Implement :meth:`Storage.read`."""
        return self.storage.read(name, max_bytes)

    def names(self, directory: str) -> list[str]:
        """Implement :meth:`Storage.names`."""
        return self.storage.names(directory)

    def remove(self, name: str) -> None:
        """Implement :meth:`Storage.remove`.

        Raises:
            Superseded: a newer attempt has begun; nothing has been removed.
        """
        verify_lease(self.storage, self.lease)
        self.storage.remove(name)


def _list_leases(storage: Storage) -> list[Lease]:
    """Return all leases, the newest last."""
    matches = map(_NAME.fullmatch, storage.names(DIRECTORY))
    return sorted(Lease(int(match[1]), match[2]) for match in matches if match)


def _describe(storage: Storage, lease: Lease) -> str:
    message = f"attempt {lease.attempt} of this run began"
    try:
        content = json.loads(storage.read(lease.name))
        return f"{message} on {str(content['host'])[:80]} at {str(content['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return message
