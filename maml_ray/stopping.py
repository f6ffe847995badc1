"""Requests to stop: Ctrl-C, SIGTERM and a newer attempt, heard between steps and obeyed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from maml_ray.errors import Interrupted, Superseded

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, turns the first signal into a flag; a second signal ends the process at once.

    Must be entered after ``ray.init``, which puts its own SIGTERM handler in place. In a thread
    other than the main one, where Python allows no handlers, it never sees a request.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._superseded: Superseded | None = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Go on, or stop.

        Raises:
            Interrupted: a signal has come.
            Superseded: a newer attempt at the run has begun.
        """
        if self._superseded is not None:
            raise self._superseded
        if self._signal is not None:
            raise Interrupted(self._signal)

    def give_way(self, superseded: Superseded) -> None:
        """Stop, since a newer attempt has begun; from any thread."""
        self._superseded = superseded

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
