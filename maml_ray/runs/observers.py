"""Call a run's observers, and leave out a user's observer that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maml_ray.config.settings import SettingsError
from maml_ray.persistence.records import IterationRecord, Observer, StartReport


class ObserverList(Observer):
    """Forward every call to all observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def add(self, *observers: Observer) -> None:
        """Append observers."""
        self._observers += observers

    def on_start(self, report: StartReport) -> None:
        """Forward the start."""
        for observer in self._observers:
            observer.on_start(report)

    def on_iteration(self, record: IterationRecord) -> None:
        """Forward an iteration."""
        for observer in self._observers:
            observer.on_iteration(record)

    def on_status(self, message: str) -> None:
        """Forward a status."""
        for observer in self._observers:
            observer.on_status(message)

    def on_event(self, message: str) -> None:
        """Forward an event."""
        for observer in self._observers:
            observer.on_event(message)

    def close(self) -> None:
        """Close all observers."""
        for observer in self._observers:
            observer.close()


class GuardedObserver(Observer):
    """Call a user's observer; report its first exception, and from then on only close it.

    It is closed only if it was started.

    Args:
        observer: the user's.
        report: receives a sentence on the exception.
    """

    def __init__(self, observer: Observer, report: Callable[[str], None]) -> None:
        self._observer, self._report = observer, report
        self._failed = self._started = False

    def on_start(self, report: StartReport) -> None:
        """Forward the start."""
        self._started = True
        self._call("on_start", report)

    def on_iteration(self, record: IterationRecord) -> None:
        """Forward an iteration."""
        self._call("on_iteration", record)

    def on_status(self, message: str) -> None:
        """Forward a status."""
        self._call("on_status", message)

    def on_event(self, message: str) -> None:
        """Forward an event."""
        self._call("on_event", message)

    def close(self) -> None:
        """Close the observer if it was started, even if it has failed since."""
        if self._started:
            self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._failed and method != "close":
            return
        try:
            getattr(self._observer, method)(*arguments)
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._report(_describe(self._observer, method, error))


def check_observers(observers: Sequence[Observer]) -> None:
    """Reject anything but instances of subclasses of :class:`Observer`.

    Raises:
        SettingsError: a class, a function, or a single observer that is not in a list.
    """
    if isinstance(observers, Observer | str) or not isinstance(observers, Sequence):
        raise SettingsError(
            f"observers = {observers!r:.80} is not allowed: write a list of instances, "
            "observers=[MyObserver()]"
        )
    for observer in observers:
        if isinstance(observer, type) and issubclass(observer, Observer):
            raise SettingsError(
                f"observers has the class {observer.__name__}: pass an instance, "
                f"{observer.__name__}()"
            )
        if not isinstance(observer, Observer):
            raise SettingsError(
                f"observers has {observer!r:.80}: pass instances of subclasses of maml_ray.Observer"
            )


def _describe(observer: Observer, method: str, error: Exception) -> str:
    """Return the sentence on an exception, with the line of the observer that it passed."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is our call
    place = f" ({Path(frames[0].filename).name}, line {frames[0].lineno})" if frames else ""
    return (
        f"warning: observer {type(observer).__name__} failed in {method} and is left out from here "
        f"on; the run continues: {reason}{place}"
    )
