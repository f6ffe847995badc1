"""Writing checkpoints while training goes on: in the background, patiently, and not in vain.

Storage that is full, away or slow never stops training by itself. A write that fails is tried
again with growing pauses; a checkpoint that has been overtaken by a newer one before it was
written is missed; and after so many missed in a row the run stops, with all that it has in memory
written to another folder. Where a newer attempt at the run has begun, this one stops as well, and
writes nothing anywhere.
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

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
SLOW_S = 30.0
"""A write that lasts so long is trouble, though it has not failed."""
_LOOK_S = 0.2
"""Between two looks at whether a wait is to be abandoned."""
_SCORES = 1000
"""Checkpoints of which the score is remembered: far more than are ever kept."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """The newest checkpoint that is safe: its number, and when it was written (Unix time)."""

    iteration: int
    at: float


class AsyncCheckpointWriter:
    """A thread that writes the newest checkpoint that it was given.

    Args:
        storage: of the run.
        keep: how many of the newest are kept.
        max_missed: so many checkpoints in a row may be missed.
        save_fallback: writes a checkpoint, and what else a run needs, to where it is safe when the
            storage is not; returns the place, for people.
        beside: brings the rest of the run's files up to date in the storage, before a checkpoint.
        on_superseded: told, in the thread, that a newer attempt at the run has begun.
        pause: waits between two attempts, or until it is woken.
        slow_s: seconds after which a write that lasts is trouble.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keep: int,
        max_missed: int,
        save_fallback: Callable[[Checkpoint], str],
        beside: Callable[[], None] = lambda: None,
        on_superseded: Callable[[Superseded], None] = lambda error: None,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
        slow_s: float = SLOW_S,
    ) -> None:
        self._storage, self._keep, self._beside = storage, keep, beside
        self._on_superseded = on_superseded
        self._max_missed, self._save_fallback = max_missed, save_fallback
        self._pause, self._slow_s = pause, slow_s
        self._lock = threading.Condition()
        self._pending: Checkpoint | None = None
        self._newest: Checkpoint | None = None
        self._scores: deque[CheckpointScore] = deque(maxlen=_SCORES)
        self._sound: set[str] = set()
        self._news: list[str] = []
        self._written: SavedCheckpoint | None = None
        self._missed = 0
        self._trouble: str | None = None
        self._superseded: Superseded | None = None
        self._rescued: Checkpoint | None = None
        self._hurry = False
        self._began: float | None = None
        self._closing = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def last_saved(self) -> SavedCheckpoint | None:
        """The newest checkpoint that is safe; None where none is yet."""
        with self._lock:
            return self._written

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest checkpoint that is safe was written; None where none is yet."""
        written = self.last_saved
        return None if written is None else max(0.0, time.time() - written.at)

    @property
    def num_missed(self) -> int:
        """How many checkpoints in a row were overtaken before they were written."""
        with self._lock:
            return self._missed

    @property
    def last_submitted(self) -> int | None:
        """The number of the newest checkpoint that was handed over; None where none was."""
        with self._lock:
            return None if self._newest is None else self._newest.iteration

    def submit(self, checkpoint: Checkpoint) -> None:
        """Have ``checkpoint`` written; returns at once."""
        with self._lock:
            self._look_whether_slow()
            if self._pending is not None and self._trouble is not None:
                self._missed += 1
            self._pending = self._newest = checkpoint
            self._lock.notify_all()

    def record_score(self, score: CheckpointScore) -> None:
        """Tell how good the parameters of a checkpoint are."""
        with self._lock:
            self._scores.append(score)

    def poll_messages(self) -> list[str]:
        """What there is to tell since the last call: trouble, and its end.

        Raises:
            TrainingFailed: too many were missed; the newest has been saved elsewhere.
            Superseded: a newer attempt at the run has begun.
        """
        with self._lock:
            self._check_superseded()
            news, self._news = self._news, []
            hopeless = self._missed > self._max_missed
            missed, trouble, newest = self._missed, self._trouble, self._newest
        if hopeless and newest is not None:
            raise TrainingFailed(
                f"{missed} checkpoints in a row could not be written to {self._storage} "
                f"({trouble}), and faults.missed_checkpoints allows {self._max_missed}; "
                f"{self._rescue(newest)}"
            )
        return news

    def flush(self, deadline_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Wait until the newest checkpoint is safe: here, or saved elsewhere before.

        Args:
            deadline_s: seconds to wait.
            check: called meanwhile; may raise to abandon the wait.

        Raises:
            TrainingFailed: it is not within ``deadline_s``; it has been saved elsewhere.
            Superseded: a newer attempt at the run has begun.
        """
        deadline = time.monotonic() + deadline_s
        self._hurry = True
        self._woken.set()  # whoever pauses tries at once
        with self._lock:
            while not self._lock.wait_for(self._is_over, timeout=min(_LOOK_S, deadline_s)):
                check()
                if time.monotonic() >= deadline:
                    break
            else:
                self._check_superseded()
                return
            newest, trouble = self._newest, self._trouble or "the storage is slow"
        assert newest is not None
        raise TrainingFailed(
            f"the last checkpoint could not be written to {self._storage} within "
            f"{deadline_s:.0f} s ({trouble}); {self._rescue(newest)}"
        )

    def close(self) -> None:
        """End the thread; a write that hangs is left behind."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._woken.set()
        self._thread.join(timeout=1.0)

    def _look_whether_slow(self) -> None:
        if self._began is not None and time.monotonic() - self._began >= self._slow_s:
            self._note_trouble(f"it has taken more than {self._slow_s:.0f} s")

    def _check_superseded(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    def _is_over(self) -> bool:
        """Whether there is nothing to wait for: the newest is safe, or may not be written."""
        if self._newest is None or self._newest is self._rescued or self._superseded is not None:
            return True
        return self._written is not None and self._written.iteration == self._newest.iteration

    def _rescue(self, checkpoint: Checkpoint) -> str:
        try:
            place = self._save_fallback(checkpoint)
        except OSError as error:
            return f"nor could what was in memory be saved elsewhere: {error_reason(error)}"
        self._rescued = checkpoint
        return f"what was in memory is in {place}"

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._pending is not None or self._closing)
                if self._closing:
                    return
                checkpoint, scores = self._pending, list(self._scores)
                self._began = time.monotonic()
            assert checkpoint is not None
            try:
                self._beside()
                save_checkpoint(
                    self._storage, checkpoint, keep=self._keep, scores=scores, sound=self._sound
                )
            except Superseded as error:
                with self._lock:
                    self._superseded = error
                    self._lock.notify_all()
                self._on_superseded(error)
                return
            except Exception as error:  # a thread that died of it would do so in silence
                with self._lock:
                    self._began = None
                    self._note_trouble(error_reason(error))
                self._pause(self._woken, FIRST_PAUSE_S if self._hurry else pause)
                self._woken.clear()
                pause = min(2.0 * pause, LONGEST_PAUSE_S)
            else:
                self._note_success(checkpoint)
                pause = FIRST_PAUSE_S

    def _note_trouble(self, trouble: str) -> None:
        if self._trouble is None:
            self._news.append(
                f"a checkpoint cannot be written to {self._storage} ({trouble}): "
                "training goes on, and it is tried again"
            )
        self._trouble = trouble

    def _note_success(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            if self._trouble is not None:
                self._news.append(
                    f"checkpoints are written to {self._storage} again; {self._missed} were missed"
                )
            self._began = self._trouble = None
            self._missed = 0
            self._written = SavedCheckpoint(checkpoint.iteration, time.time())
            if self._pending is checkpoint:
                self._pending = None
            self._lock.notify_all()
