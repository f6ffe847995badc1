"""Requests to stop: Ctrl-C, SIGTERM and a newer attempt, obeyed in good order and in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from maml_ray.common.errors import Interrupted, Superseded

EXIT_TIMEOUT_S = 9.5
"""A program that was asked to end has ended by then, whatever it waits for."""
_AGAIN_S = 0.01
"""Until a signal comes again that was lost on the way: what it came into has ended by then."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_OF: dict[Any, int] = {
    15: signal.SIGTERM,
    **{128 + number: number for number in _SIGNALS},
}
"""By the code that its handler leaves with: ours, or Ray's, which stands while Ray starts."""


class _Handler:
    """While entered, hears the signals; in a thread other than the main one it never does."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Any:
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


class StopRequest(_Handler):
    """While entered, turns the first signal into a flag; a second signal ends the process at once.

    For a loop that has something to finish. Must be entered after ``ray.init``, which puts its own
    SIGTERM handler in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._superseded: Superseded | None = None

    def supersede(self, superseded: Superseded) -> None:
        """Stop, since a newer attempt has begun; from any thread."""
        self._superseded = superseded

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

    def _hear(self, number: int, frame: FrameType | None) -> None:
        super()._hear(number, frame)
        if ExitOnSignal.current is not None:
            ExitOnSignal.current.note(number)


class ExitOnSignal(_Handler):
    """While entered, the first signal ends the program, and a second one does so at once.

    For all that a program does beside a loop of :class:`StopRequest`: its start, and what follows.
    What is open is closed on the way out; what does not close in time is left behind.
    """

    current: ExitOnSignal | None = None

    def __init__(self) -> None:
        super().__init__()
        self._swallowed = False
        self._again: threading.Timer | None = None

    def __enter__(self) -> ExitOnSignal:
        super().__enter__()
        ExitOnSignal.current = self
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._again is not None:
            self._again.cancel()  # what it would interrupt has ended
        sys.unraisablehook = self._hook_before
        ExitOnSignal.current = None
        super().__exit__(*raised)

    def note(self, number: int) -> None:
        """A signal was heard, here or within: the next one ends the program at once."""
        self._signal = number
        last_resort = threading.Timer(EXIT_TIMEOUT_S, os._exit, (128 + number,))
        last_resort.daemon = True
        last_resort.start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._swallowed:
            super()._hear(number, frame)
            self.note(number)
            # Not print: the signal may have come in the middle of another one.
            os.write(2, f"maml-ray: stopped by signal {number}\n".encode())
        self._swallowed = False
        raise SystemExit(128 + number)

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """The signal came where Python lets nothing out, as within a fork: have it come again."""
        leaving = unraisable.exc_value
        number = _SIGNAL_OF.get(leaving.code) if isinstance(leaving, SystemExit) else None
        if number is None:
            self._hook_before(unraisable)
            return
        self._swallowed = self._signal is not None
        main = threading.main_thread().ident
        self._again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, number))
        self._again.daemon = True
        self._again.start()
