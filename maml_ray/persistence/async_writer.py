"""Write checkpoints in a background thread and report failures to the training loop.

Storage that is full, unreachable or slow does not stop training at once. A failed write is retried
with growing pauses, and a checkpoint that a newer one replaces before it is written counts as
missed. After too many missed in a row the run stops, and everything in memory is saved to another
directory. If a newer attempt at the run has begun, this one stops and writes nothing anywhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from maml_ray.common.errors import Superseded, TrainingFailed, error_reason
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import CheckpointScore, save_checkpoint
from maml_ray.persistence.storage import Storage

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 60.0
"""Shortest and longest pause between two attempts at a write."""
SLOW_WRITE_S = 30.0
"""Duration after which a write counts as failing, although it has raised no error."""
_POLL_S = 0.2
_MAX_SCORES = 1000
"""Number of checkpoint scores remembered: far more than checkpoints are ever kept."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """The newest checkpoint in the storage: its number, and its Unix time of writing in seconds."""

    iteration: int
    at: float


class AsyncCheckpointWriter:
    """Writes the newest submitted checkpoint in a background thread.

    Args:
        storage: storage of the run.
        keep: number of newest checkpoints to keep.
        max_missed: number of checkpoints in a row that may be missed.
        save_fallback: saves a checkpoint, and what else a run needs, outside the storage; returns
            the directory to resume from.
        before_write: called before each write, to bring the run's other files in the storage up to
            date.
        on_superseded: called in the thread if a newer attempt at the run has begun.
        wait: waits between two attempts, up to a number of seconds or until the event is set.
        slow_write_s: seconds after which a write counts as failing.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keep: int,
        max_missed: int,
        save_fallback: Callable[[Checkpoint], str],
        before_write: Callable[[], None] = lambda: None,
        on_superseded: Callable[[Superseded], None] = lambda error: None,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
        slow_write_s: float = SLOW_WRITE_S,
    ) -> None:
        self._storage, self._keep, self._before_write = storage, keep, before_write
        self._on_superseded = on_superseded
        self._max_missed, self._save_fallback = max_missed, save_fallback
        self._wait, self._slow_write_s = wait, slow_write_s
        self._changed = threading.Condition()
        self._pending: Checkpoint | None = None
        self._newest: Checkpoint | None = None
        self._scores: deque[CheckpointScore] = deque(maxlen=_MAX_SCORES)
        self._verified: set[str] = set()
        self._messages: list[str] = []
        self._saved: SavedCheckpoint | None = None
        self._num_missed = 0
        self._failure: str | None = None
        self._superseded: Superseded | None = None
        self._saved_elsewhere: Checkpoint | None = None
        self._flushing = False
        self._write_start: float | None = None
        self._closing = False
        self._retry_now = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def last_saved(self) -> SavedCheckpoint | None:
        """The newest checkpoint written to the storage; None before the first."""
        with self._changed:
            return self._saved

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest checkpoint was written to the storage; None before the first."""
        saved = self.last_saved
        return None if saved is None else max(0.0, time.time() - saved.at)

    @property
    def num_missed(self) -> int:
        """Number of checkpoints in a row that were replaced before they were written."""
        with self._changed:
            return self._num_missed

    @property
    def last_submitted(self) -> int | None:
        """Number of the newest checkpoint submitted; None before the first."""
        with self._changed:
            return None if self._newest is None else self._newest.iteration

    def submit(self, checkpoint: Checkpoint) -> None:
        """Schedule ``checkpoint`` to be written; return at once."""
        with self._changed:
            self._check_duration()
            if self._pending is not None and self._failure is not None:
                self._num_missed += 1
            self._pending = self._newest = checkpoint
            self._changed.notify_all()

    def record_score(self, score: CheckpointScore) -> None:
        """Record the score of a checkpoint's parameters, to keep the best one."""
        with self._changed:
            self._scores.append(score)

    def poll_messages(self) -> list[str]:
        """Return messages since the last call: writes that fail, and that succeed again.

        Raises:
            TrainingFailed: too many were missed; the newest has been saved elsewhere.
            Superseded: a newer attempt at the run has begun.
        """
        with self._changed:
            self._raise_if_superseded()
            messages, self._messages = self._messages, []
            too_many = self._num_missed > self._max_missed
            missed, failure, newest = self._num_missed, self._failure, self._newest
        if too_many and newest is not None:
            raise self._save_elsewhere(
                newest,
                f"{missed} checkpoints in a row could not be written to {self._storage} "
                f"({failure}), and faults.missed_checkpoints allows {self._max_missed}",
            )
        return messages

    def flush(self, timeout_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Wait until the newest checkpoint is in the storage, unless it was saved elsewhere before.

        Args:
            timeout_s: seconds to wait.
            check: called repeatedly during the wait; may raise to abandon it.

        Raises:
            TrainingFailed: the timeout has passed; the checkpoint has been saved elsewhere.
            Superseded: a newer attempt at the run has begun.
        """
        deadline = time.monotonic() + timeout_s
        self._flushing = True
        self._retry_now.set()
        with self._changed:
            while not self._changed.wait_for(self._is_done, timeout=min(_POLL_S, timeout_s)):
                check()
                if time.monotonic() >= deadline:
                    break
            else:
                self._raise_if_superseded()
                return
            newest, failure = self._newest, self._failure or "the storage is slow"
        assert newest is not None
        raise self._save_elsewhere(
            newest,
            f"the last checkpoint could not be written to {self._storage} within "
            f"{timeout_s:.0f} s ({failure})",
        )

    def close(self) -> None:
        """End the thread; a write that hangs is abandoned."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._retry_now.set()
        self._thread.join(timeout=1.0)

    def _check_duration(self) -> None:
        start = self._write_start
        if start is not None and time.monotonic() - start >= self._slow_write_s:
            self._set_failure(f"it has taken more than {self._slow_write_s:.0f} s")

    def _raise_if_superseded(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    def _is_done(self) -> bool:
        """Return whether the newest checkpoint is saved, or may not be written."""
        if self._superseded is not None or self._newest in (None, self._saved_elsewhere):
            return True
        return self._saved is not None and self._saved.iteration == self._newest.iteration

    def _save_elsewhere(self, checkpoint: Checkpoint, problem: str) -> TrainingFailed:
        """Return the failure, which names the directory to resume from."""
        try:
            place = self._save_fallback(checkpoint)
        except OSError as error:
            return TrainingFailed(
                f"{problem}; nor could what was in memory be saved elsewhere: {error_reason(error)}"
            )
        self._saved_elsewhere = checkpoint
        failure = TrainingFailed(f"{problem}; what was in memory is in {place}")
        failure.run = place
        return failure

    def _run(self) -> None:
        pause = MIN_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._closing:
                    return
                checkpoint, scores = self._pending, list(self._scores)
                self._write_start = time.monotonic()
            assert checkpoint is not None
            try:
                self._before_write()
                save_checkpoint(
                    self._storage,
                    checkpoint,
                    keep=self._keep,
                    scores=scores,
                    verified=self._verified,
                )
            except Superseded as error:
                with self._changed:
                    self._superseded = error
                    self._changed.notify_all()
                self._on_superseded(error)
                return
            except Exception as error:  # any: the thread must not die silently
                with self._changed:
                    self._write_start = None
                    self._set_failure(error_reason(error))
                self._wait(self._retry_now, MIN_PAUSE_S if self._flushing else pause)
                self._retry_now.clear()
                pause = min(2.0 * pause, MAX_PAUSE_S)
            else:
                self._on_saved(checkpoint)
                pause = MIN_PAUSE_S

    def _set_failure(self, failure: str) -> None:
        if self._failure is None:
            self._messages.append(
                f"a checkpoint cannot be written to {self._storage} ({failure}): "
                "training goes on and the write is retried"
            )
        self._failure = failure

    def _on_saved(self, checkpoint: Checkpoint) -> None:
        with self._changed:
            if self._failure is not None:
                self._messages.append(
                    f"checkpoints are written to {self._storage} again; "
                    f"{self._num_missed} were missed"
                )
            self._write_start = self._failure = None
            self._num_missed = 0
            self._saved = SavedCheckpoint(checkpoint.iteration, time.time())
            if self._pending is checkpoint:
                self._pending = None
            self._changed.notify_all()
