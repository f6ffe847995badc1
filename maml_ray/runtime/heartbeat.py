"""What an actor is at: what it is asked when nothing comes of it any more."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from maml_ray.learning.rollout_worker import Assignment, RolloutTimings

_FRAMES = 8


@dataclass(frozen=True)
class Place:
    """Where an actor runs."""

    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host} (node {self.node_id[:8]}, pid {self.pid})"


@dataclass(frozen=True)
class Receipt:
    """What the driver learns of finished work; the rollouts themselves go to the learner.

    Attributes:
        assignment: what was done.
        timings: how long it took.
        node_id: of the node that holds the rollouts.
    """

    assignment: Assignment
    timings: RolloutTimings
    node_id: str


@dataclass(frozen=True)
class Activity:
    """What an actor was at when it was asked.

    Attributes:
        work: the piece of work and its phase; None when idle.
        since_s: for how long.
        stack: the innermost calls of the thread that works, a line each.
    """

    work: str | None
    since_s: float
    stack: tuple[str, ...]

    def __str__(self) -> str:
        if self.work is None:
            return f"idle for {self.since_s:.0f} s"
        return "\n".join([f"{self.work}, for {self.since_s:.0f} s", *self.stack])


class ActivityLog:
    """Written by the thread that works, read by the one that watches."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._work: str | None = None
        self._phase = ""
        self._since = time.monotonic()

    @contextmanager
    def at(self, work: str) -> Iterator[None]:
        """This thread is at ``work`` for as long as the block lasts."""
        self._thread, self._work, self._phase = threading.get_ident(), work, ""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._thread = self._work = None
            self._since = time.monotonic()

    def now(self, phase: str) -> None:
        """The work has come to ``phase``."""
        self._phase = phase
        self._since = time.monotonic()

    def tell(self) -> Activity:
        """What is done now, and where in the code."""
        thread, work, phase = self._thread, self._work, self._phase
        frame = sys._current_frames().get(thread) if thread is not None else None
        calls = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        stack = tuple(f"    {call.filename}:{call.lineno} in {call.name}" for call in calls)
        told = f"{work}, {phase}" if work and phase else work
        return Activity(told, time.monotonic() - self._since, stack)
