"""Stop a program in good order, and in time, on Ctrl-C, SIGTERM or a newer attempt."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from maml_ray.common.errors import Interrupted, Superseded

EXIT_TIMEOUT_S = 9.5
"""Seconds after a signal until the process exits, whatever it is waiting for."""
_RESEND_AFTER_S = 0.05
"""Seconds until a signal is sent again: the code that drops exceptions has ended by then."""
_CLEANUP_TIMEOUT_S = 0.5
"""Time limit in seconds of the cleanups of :func:`force_exit`, whose file system may hang."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_BY_EXIT_CODE: dict[Any, int] = {
    15: signal.SIGTERM,
    **{128 + number: number for number in _SIGNALS},
}
"""Signals by the exit code of their handler: ours, or Ray's 15 while Ray starts."""
forced_exit_cleanups: list[Callable[[], object]] = []
"""Quick functions that :func:`force_exit` calls, for what the normal exit would have removed."""


def force_exit(code: int) -> NoReturn:
    """End the process now, whatever its main thread waits for, after the quick cleanups."""

    def clean() -> None:
        for cleanup in reversed(forced_exit_cleanups):
            with suppress(Exception):
                cleanup()

    cleaner = threading.Thread(target=clean, daemon=True)
    cleaner.start()
    cleaner.join(_CLEANUP_TIMEOUT_S)
    os._exit(code)


class _SignalHandler:
    """Handle the signals while entered; does nothing outside the main thread."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *raised: Any) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give the signals back to the handlers that they had before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            force_exit(128 + number)
        self._signal = number


class HeldSignals(_SignalHandler):
    """Delay signals while entered: afterwards the program's own handlers receive the first.

    For a few operations that must happen together, such as creating a file and noting that it
    exists. A second signal ends the process at once.
    """

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.received is not None:
            signal.raise_signal(self.received)

    @property
    def received(self) -> int | None:
        """The first signal that was delayed."""
        return self._signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        if ExitOnSignal.current is not None:
            ExitOnSignal.current.start_deadline(number)


def _send_later(number: int) -> threading.Timer:
    """Send a signal to the main thread soon, where no exception that it raises is dropped."""
    main = threading.main_thread().ident
    timer = threading.Timer(_RESEND_AFTER_S, signal.pthread_kill, (main, number))
    timer.daemon = True
    timer.start()
    return timer


@cache
def hold_signals_in_forks() -> None:
    """Delay signals from now on while the main thread forks, until all hooks of the fork have run.

    A handler that raises within a hook would cut it short, and the other hooks of its library
    would find what it has not done: filelock's end the forked process. Of the hooks registered so
    far, Python calls these first before a fork and last after it: call this after the imports.
    """
    held: list[HeldSignals] = []

    def before() -> None:
        if threading.current_thread() is threading.main_thread():
            held.append(HeldSignals())
            held[-1].__enter__()

    def after_in_parent() -> None:
        if threading.current_thread() is threading.main_thread() and held:
            within = held.pop()
            within.restore_handlers()
            if within.received is not None:  # what it raised here, Python would drop
                _send_later(within.received)

    def after_in_child() -> None:
        while held:
            held.pop().restore_handlers()

    os.register_at_fork(
        before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
    )


class StopRequest(_SignalHandler):
    """Turn the first signal into a flag while entered; a second signal ends the process at once.

    For loops that have something to finish. Enter it after ``ray.init``, which installs its own
    SIGTERM handler.

    Args:
        also_check: called by :meth:`check`; raises if there is another reason to stop.
    """

    def __init__(self, also_check: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._also_check = also_check
        self._superseded: Superseded | None = None

    def supersede(self, superseded: Superseded) -> None:
        """Request a stop because a newer attempt has started; callable from any thread."""
        self._superseded = superseded

    def check(self) -> None:
        """Raise if a stop was requested.

        Raises:
            Interrupted: a signal was received.
            Superseded: a newer attempt at the run has started.
        """
        if self._superseded is not None:
            raise self._superseded
        if self._signal is not None:
            raise Interrupted(self._signal)
        self._also_check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        if ExitOnSignal.current is not None:
            ExitOnSignal.current.note(number)


class ExitOnSignal(_SignalHandler):
    """Exit on the first signal while entered; a second signal ends the process at once.

    For the parts of a program outside a loop with :class:`StopRequest`: before it and after it.
    Open resources are closed on the way out, unless that takes longer than ``EXIT_TIMEOUT_S``.
    """

    current: ExitOnSignal | None = None

    def __init__(self) -> None:
        super().__init__()
        self._swallowed = False
        self._has_deadline = False
        self._resend: threading.Timer | None = None

    def __enter__(self) -> ExitOnSignal:
        super().__enter__()
        ExitOnSignal.current = self
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._resend is not None:
            self._resend.cancel()  # the code to be interrupted has ended
        sys.unraisablehook = self._previous_hook
        ExitOnSignal.current = None
        super().__exit__(*raised)

    def note(self, number: int) -> None:
        """Record a signal received here or by a StopRequest, and start the exit deadline."""
        self._signal = number
        self.start_deadline(number)

    def start_deadline(self, number: int) -> None:
        """End the process ``EXIT_TIMEOUT_S`` from now, or from the first call."""
        if not self._has_deadline:
            self._has_deadline = True
            deadline = threading.Timer(EXIT_TIMEOUT_S, force_exit, (128 + number,))
            deadline.daemon = True
            deadline.start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._swallowed:
            super()._handle(number, frame)
            self.note(number)
            # Not print: the signal may have come in the middle of another one.
            os.write(2, f"maml-ray: stopped by signal {number}\n".encode())
        self._swallowed = False
        raise SystemExit(128 + number)

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Send a signal again whose exception Python swallowed, as within a fork."""
        leaving = unraisable.exc_value
        number = _SIGNAL_BY_EXIT_CODE.get(leaving.code) if isinstance(leaving, SystemExit) else None
        if number is None:
            self._previous_hook(unraisable)
            return
        self._swallowed = self._signal is not None
        self._resend = _send_later(number)
