"""Attempts: of all programs that carry on the same run, only the newest may write to its storage.

Two may do so at once: a cluster is begun anew while pods of the old one linger, a node that was
cut off comes back, two people resume the same ``s3://`` run. So each leaves a note in the run's
storage, ``attempts/<number>-<token>.json``, before it writes anything else. The highest name
counts, and every write and removal is preceded by a listing of the notes (:class:`FencedStorage`):
whoever finds a higher one than its own stops at once, by
:class:`~maml_ray.common.errors.Superseded`.

What is guaranteed, where a listing shows a file as soon as it has been written (folders, S3,
Google's and Azure's object stores, MinIO):

- Once an attempt's note is there, no older attempt begins another write or removal.
- The one request that an older attempt may have under way at that moment does no harm: parameters
  and learner of the same run and number are the same bits, whoever writes them (and from another
  kind of CPU they do not match the manifest, and the checkpoint before is used); a checkpoint that
  is removed has newer ones after it; and the next score mends a note of the best put back.
- Of attempts that begin at the same moment exactly one stays. Notes have names of their own, so
  that none replaces another: no compare-and-swap is needed, which not every store has.

What is not: a listing that lags, such as NFS with its attributes cached (mount it with ``noac``),
lets an older attempt write until it catches up, to the same bits; and what lies in the run folder
alone, ``metrics.jsonl`` and TensorBoard's events, is guarded by that folder's lock
(:mod:`maml_ray.persistence.file_lock`), on one machine.
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
from maml_ray.persistence.storage import Storage

FOLDER = "attempts"
_NAME = re.compile(r"([0-9]{6,12})-([0-9a-f]{16})\.json")
_TRIES = 20
_KEPT = 10
"""Notes that stay, for people who wonder what happened."""


@dataclass(frozen=True, order=True)
class Lease:
    """One program's go at a run; of two, the greater is the newer.

    Attributes:
        number: counted from 1, over the whole life of the run.
        token: tells two that took the same number at the same moment apart.
    """

    number: int
    token: str

    @property
    def name(self) -> str:
        """Of its note in the storage."""
        return f"{FOLDER}/{self.number:06d}-{self.token}.json"


def acquire_lease(storage: Storage, *, above: int = 0, new: bool = False) -> Lease:
    """Begin an attempt, newer than all that are noted in ``storage``.

    Args:
        storage: of the run.
        above: a number that it is to be above as well.
        new: the run is a new one, and nobody else may have begun it.

    Raises:
        RunDirError: there are attempts already, at what should be a new run.
        OSError: the storage failed, or others keep being faster.
    """
    for _ in range(_TRIES):
        there = _attempts(storage)
        if new and there:
            raise RunDirError(
                f"{storage} belongs to another run: {_told(storage, there[-1])}; go on with that "
                "one by --resume, or name this one otherwise"
            )
        mine = Lease(max(above, *(one.number for one in there), 0) + 1, secrets.token_hex(8))
        storage.write(mine.name, _note(mine))
        there = _attempts(storage)
        if there and there[-1] == mine:
            _clear(storage, there)
            return mine
        if new:
            storage.remove(mine.name)
    raise OSError(f"other attempts at the run in {storage} keep beginning at the same moment")


def check(storage: Storage, mine: Lease) -> None:
    """See that ``mine`` is still the newest.

    Raises:
        Superseded: it is not.
        OSError: the storage failed, or is another than it was: without the note of this attempt.
    """
    there = _attempts(storage)
    if there and there[-1] > mine:
        raise Superseded(
            f"{_told(storage, there[-1])}: this one, attempt {mine.number}, stops and has written "
            "nothing since"
        )
    if mine not in there:
        raise OSError(f"{storage} no longer holds {mine.name}: it has been emptied or unmounted")


class FencedStorage:
    """A storage in which one attempt writes, as long as it is the newest.

    Args:
        storage: of the run.
        attempt: what :func:`claim` has given.
    """

    def __init__(self, storage: Storage, attempt: Lease) -> None:
        self.storage = storage
        self.attempt = attempt

    def __str__(self) -> str:
        return str(self.storage)

    def write(self, name: str, content: bytes) -> None:
        """See :meth:`Storage.write`.

        Raises:
            Superseded: a newer attempt has begun; nothing has been written.
        """
        check(self.storage, self.attempt)
        self.storage.write(name, content)

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        return self.storage.read(name)

    def names(self, folder: str) -> list[str]:
        """See :meth:`Storage.names`."""
        return self.storage.names(folder)

    def remove(self, name: str) -> None:
        """See :meth:`Storage.remove`.

        Raises:
            Superseded: a newer attempt has begun; nothing has been removed.
        """
        check(self.storage, self.attempt)
        self.storage.remove(name)


def _attempts(storage: Storage) -> list[Lease]:
    """Those that are noted, the newest last."""
    found = (_NAME.fullmatch(name) for name in storage.names(FOLDER))
    return sorted(Lease(int(match[1]), match[2]) for match in found if match)


def _note(attempt: Lease) -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note = {"attempt": attempt.number, "host": socket.gethostname(), "since": since}
    return json.dumps(note).encode()


def _told(storage: Storage, attempt: Lease) -> str:
    """That an attempt has begun, with what its note says."""
    told = f"attempt {attempt.number} of this run began"
    try:
        note = json.loads(storage.read(attempt.name))
        return f"{told} on {str(note['host'])[:80]} at {str(note['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return told


def _clear(storage: Storage, there: list[Lease]) -> None:
    """Remove notes that nobody asks for any more."""
    for one in there[:-_KEPT]:
        with suppress(OSError):
            storage.remove(one.name)
