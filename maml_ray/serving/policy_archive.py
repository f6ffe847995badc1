"""Keep adapted policies in the storage of their run, where they outlive the service's processes.

``served/adapted-.../`` holds the two files of a saved policy. ``policy.json``, with the checksum of
the other file, is written last: a directory without it is not a policy, and is removed like one
when it is old. Several services may share a run: names are random, so none overwrites a policy of
another, and a directory that another service removes first is no error.

The number and the age are bounded. The age is that of the name, in Unix time: a restart does not
make a policy younger. Writing happens in a thread (:class:`ArchiveWriter`), so that a storage that
is slow or fails delays no action; the policies are in memory meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from pathlib import Path

from maml_ray.common.errors import RunDirError, error_reason
from maml_ray.common.locations import parse_location
from maml_ray.common.safe_files import UnsuitableFile
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.loading import is_policy_folder
from maml_ray.evaluation.saved_policy import (
    DESCRIPTION,
    PARAMETERS,
    parse_policy,
    serialize_policy,
)
from maml_ray.persistence.run_dir import open_run_dir
from maml_ray.persistence.run_storage import open_run_storage
from maml_ray.persistence.storage import LocalStorage, Storage, open_storage
from maml_ray.serving.served_policy import ServedPolicy, creation_time, without_secret

DIRECTORY = "served"
RETRY_S = 30.0
"""Pause before policies that could not be written are tried again."""
CLEANUP_S = 600.0
"""Longest time between two removals of old policies."""
_MAX_CLOCK_DIFFERENCE_S = 300.0
"""A name from a machine whose clock is further ahead is none of ours."""
_DAMAGED = (
    RunDirError,
    SettingsError,
    UnsuitableFile,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What a single policy can cause; other errors are of the storage."""

_log = logging.getLogger(__name__)


class PolicyArchive:
    """Keep adapted policies in a storage; the methods block.

    Args:
        storage: storage of the run.
        max_policies: maximum number of policies.
        max_age_s: seconds from a policy's creation to its removal.
        clock: returns the Unix time in seconds.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        max_policies: int,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage, self._clock = storage, clock
        self._max_policies, self._max_age_s = max_policies, max_age_s

    def __str__(self) -> str:
        return f"{self._storage}/{DIRECTORY}"

    def write(self, policy: ServedPolicy) -> None:
        """Store a policy, durably when this returns.

        Raises:
            OSError: the storage failed, or the run's directory is gone.
        """
        if isinstance(self._storage, LocalStorage) and not self._storage.path.is_dir():
            # Writing would make a directory that is no run, in the place of one.
            raise FileNotFoundError(f"the run directory {self._storage} is gone")
        files = serialize_policy(policy.agent, policy.task)
        for name in (PARAMETERS, DESCRIPTION):
            self._storage.write(f"{DIRECTORY}/{policy.name}/{name}", files[name])

    def may_hold(self, name: str) -> bool:
        """Return whether ``name`` is that of an adapted policy which is not too old."""
        return self._age_s(name) < self._max_age_s

    def read(self, name: str) -> ServedPolicy | None:
        """Return a policy; None if there is none, or a damaged one, which is logged.

        Raises:
            OSError: the storage failed.
        """
        if not self.may_hold(name):  # also: no other name becomes a path
            return None

        def read_file(file: str, max_bytes: int) -> bytes:
            return self._storage.read(f"{DIRECTORY}/{name}/{file}", max_bytes)

        try:
            saved = parse_policy(read_file, Path(str(self)) / without_secret(name))
        except FileNotFoundError:
            return None
        except _DAMAGED as error:
            _log.warning(
                "an adapted policy in %s is damaged and passed over: %s", self, error_reason(error)
            )
            return None
        return ServedPolicy(name, saved.agent, saved.task)

    def remove_old(self, in_use: Collection[str] = ()) -> None:
        """Remove policies that are too old, then the oldest beyond the maximum number.

        Args:
            in_use: names of the policies to keep longest.

        Raises:
            OSError: the storage failed.
        """
        # The names begin with the time: sorted, the oldest come first.
        names = [name for name in self._storage.names(DIRECTORY) if creation_time(name) is not None]
        valid = [name for name in names if self.may_hold(name)]
        for name in (name for name in names if not self.may_hold(name)):
            self._remove(name)
        surplus = max(0, len(valid) - self._max_policies)
        for name in sorted(valid, key=lambda name: (name in in_use, name))[:surplus]:
            self._remove(name)

    def _age_s(self, name: str) -> float:
        """Return a policy's age in seconds; infinity for a name that is not one of ours."""
        created = creation_time(name)
        age = float("inf") if created is None else self._clock() - created
        return age if age > -_MAX_CLOCK_DIFFERENCE_S else float("inf")

    def _remove(self, name: str) -> None:
        try:
            self._storage.remove(f"{DIRECTORY}/{name}")
        except FileNotFoundError:  # another service has been faster
            return


class ArchiveWriter:
    """Write policies to an archive in a thread, and remove old ones.

    What cannot be written is tried again every :data:`RETRY_S` seconds, as long as it is in use.
    The first failure, and the recovery, are logged.

    Args:
        archive: where to write.
        in_use: returns the names of the policies in memory; called in any thread.
        retry_s: pause after a failure, in seconds.
    """

    def __init__(
        self,
        archive: PolicyArchive,
        in_use: Callable[[], Collection[str]],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._archive, self._in_use, self._retry_s = archive, in_use, retry_s
        self._unsaved: dict[str, tuple[ServedPolicy, Future[None]]] = {}
        self._changed = threading.Condition()
        self._failure: str | None = None
        threading.Thread(target=self._run, name="policy-archive", daemon=True).start()

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt has failed, or has not ended in time."""
        return self._failure is not None

    def submit(self, policy: ServedPolicy) -> Future[None]:
        """Write a policy soon; the future ends once it is written, has failed or is out of use."""
        attempt: Future[None] = Future()
        with self._changed:
            unused = self._unsaved.keys() - frozenset(self._in_use())
            dropped = [self._unsaved.pop(name)[1] for name in unused]
            self._unsaved[policy.name] = policy, attempt
            self._changed.notify()
        for each in dropped:
            _end(each)
        return attempt

    def note_failure(self, reason: str) -> None:
        """Log that the archive cannot be used, unless that is known."""
        if self._failure is None:
            _log.warning(
                "%s cannot be used (%s): adapted policies are kept in memory only until it can, "
                "and are lost if the service ends",
                self._archive,
                reason,
            )
        self._failure = reason

    def _run(self) -> None:
        cleanup_at = time.monotonic()  # at once: policies may have become too old meanwhile
        while True:
            with self._changed:
                attempts = dict(self._unsaved)
            if attempts or self.is_failing or time.monotonic() >= cleanup_at:
                self._try(attempts)
                cleanup_at = time.monotonic() + CLEANUP_S
            with self._changed:
                self._changed.wait_for(self._has_new, self._retry_s)

    def _try(self, attempts: dict[str, tuple[ServedPolicy, Future[None]]]) -> None:
        try:
            self._write(attempts)
        except OSError as error:
            self.note_failure(error_reason(error))
        except Exception as error:  # a defect: the service goes on in memory
            _log.exception("writing adapted policies to %s failed", self._archive)
            self.note_failure(type(error).__name__)
        else:
            self._note_success()
        for _, attempt in attempts.values():
            _end(attempt)

    def _write(self, attempts: dict[str, tuple[ServedPolicy, Future[None]]]) -> None:
        for name, (policy, attempt) in attempts.items():
            self._archive.write(policy)
            with self._changed:
                self._unsaved.pop(name, None)
            _end(attempt)
        self._archive.remove_old(frozenset(self._in_use()))

    def _has_new(self) -> bool:
        return any(not attempt.done() for _, attempt in self._unsaved.values())

    def _note_success(self) -> None:
        if self._failure is not None:
            _log.warning("%s can be used again: adapted policies are kept there", self._archive)
        self._failure = None


def _end(attempt: Future[None]) -> None:
    """End an attempt, which another thread may end at the same time."""
    with suppress(InvalidStateError):
        attempt.set_result(None)


def open_archive(run: str, *, max_policies: int, max_age_s: float) -> PolicyArchive | None:
    """Return the archive of a run; None for a policy that was saved without its run.

    Args:
        run: run directory, URL of a run, or directory of a saved policy.
        max_policies, max_age_s: see :class:`PolicyArchive`.

    Raises:
        UserError: ``run`` is none of these.
    """
    make = partial(PolicyArchive, max_policies=max_policies, max_age_s=max_age_s)
    location = parse_location(run, "run")
    if isinstance(location, str):
        return make(open_storage(location))
    if is_policy_folder(location):
        return None
    run_dir = open_run_dir(location)
    settings = load_settings(run_dir.settings, recorded=True)
    return make(open_run_storage(run_dir, settings.run))
