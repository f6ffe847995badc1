"""Show the progress of a run: in place on a terminal and in a notebook, else as lines of a log."""

from __future__ import annotations

import html
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.reporting.progress_text import (
    format_duration,
    format_iteration,
    format_start,
    metric_rows,
)

_WINDOW = 10
LOG_INTERVAL_S = 4.0
"""Seconds without a line in a log after which the status is printed."""
_FIRST_LINE_S = 1.0
"""The same for the first status: the program has been silent while it was loaded."""
LOG_ITERATION_INTERVAL_S = 60.0
"""The same within an iteration: each ends with a line, and a run has thousands."""
_NOTEBOOK_INTERVAL_S = 2.0
_EVENTS_SHOWN = 5
"""Events that a notebook keeps in its display, the latest."""


def show_any_text() -> None:
    """Let standard output and error show as escapes what their encoding has no letters for.

    Names of files may not be valid text, and a terminal may have ASCII only (``LC_ALL=C``).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class TimeLeftEstimator:
    """Estimate the time left from the mean wall time of the last ten iterations."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def update(self, record: IterationRecord) -> float:
        """Add a finished iteration and return the estimated seconds left."""
        self._recent.append(record.timings.wall_s)
        # The first iteration compiles and warms up, so it is not representative.
        typical = list(self._recent)[1:] if record.iteration < _WINDOW else list(self._recent)
        mean = sum(typical) / len(typical) if typical else record.timings.wall_s
        return mean * (record.iterations - record.iteration - 1)


class StatusProgress(Observer):
    """What all displays share: what the run does now, since when, and its latest iteration.

    Args:
        console: shows the progress.
        clock: returns the time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._status, self._since = "", clock()
        self._time_left = TimeLeftEstimator()
        self._best = float("-inf")

    @property
    def status(self) -> str:
        """What the run does now and for how many seconds; empty if nothing."""
        seconds = self._clock() - self._since
        return self._status + (f" ({seconds:.0f} s)" if self._status and seconds >= 1.0 else "")

    def on_status(self, message: str) -> None:
        """Show ``message``, and from then on the seconds since it changed."""
        if message != self._status:
            self._status, self._since = message, self._clock()

    def _advance(self, record: IterationRecord) -> float:
        """Take in a finished iteration; return the estimated seconds left."""
        self._best = max(self._best, record.update.return_after)
        following = record.iteration + 2
        self._status = f"running iteration {following}"
        self._since = self._clock()
        if following > record.iterations:
            self._status = ""
        return self._time_left.update(record)


class TerminalProgress(StatusProgress):
    """Show a live table below the log; the last state stays on the screen when closed."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._metrics: Group | None = None
        # Dots are letters of Braille.
        self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def on_status(self, message: str) -> None:
        """Show ``message`` below the metrics, with a spinner."""
        super().on_status(message)
        self._live.start(refresh=True)  # does nothing if it is started

    def on_start(self, report: StartReport) -> None:
        """Print the run directory and resources, and open the display."""
        for line in format_start(report):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self.on_status(f"running iteration {report.first_iteration + 1}")

    def on_iteration(self, record: IterationRecord) -> None:
        """Show the metrics of the iteration."""
        left_s = self._advance(record)
        self._metrics, self._live.transient = self._render_metrics(record, left_s), False
        self._live.refresh()

    def on_event(self, message: str) -> None:
        """Print a line above the display."""
        self._console.print(message, style="yellow", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Close the display."""
        self._status = ""
        self._live.stop()

    def _render(self) -> Group:
        self._spinner.update(text=Text(self.status))
        return Group(
            *([self._metrics] if self._metrics else []), *([self._spinner] if self._status else [])
        )

    def _render_metrics(self, record: IterationRecord, left_s: float) -> Group:
        bar = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn(
                f"{format_duration(record.elapsed_s)} elapsed, {format_duration(left_s)} left"
            ),
            console=self._console,
            expand=True,
        )
        bar.add_task("", total=record.iterations, completed=record.iteration + 1)
        table = Table.grid(padding=(0, 2))
        for name, text in metric_rows(record, self._best):
            table.add_row(name, text)
        return Group(bar, table)


class PlainProgress(StatusProgress):
    """Print one line per iteration, for log files and Ray's job output.

    A status is printed only once nothing else has been for :data:`LOG_INTERVAL_S`.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._interval_s, self._printed_at = LOG_INTERVAL_S, clock()
        self._printed_at -= LOG_INTERVAL_S - _FIRST_LINE_S
        self._ticker = _Ticker(self.tick, LOG_INTERVAL_S / 8)

    def on_status(self, message: str) -> None:
        """Print ``message`` if it stays for long."""
        super().on_status(message)
        self._interval_s = LOG_INTERVAL_S
        self._ticker.start()

    def on_start(self, report: StartReport) -> None:
        """Print the run directory and resources."""
        for line in format_start(report):
            self._print(line)
        self.on_status(f"running iteration {report.first_iteration + 1}")

    def on_iteration(self, record: IterationRecord) -> None:
        """Print the metrics of the iteration."""
        self._print(format_iteration(record, self._advance(record)))
        self._interval_s = LOG_ITERATION_INTERVAL_S

    def on_event(self, message: str) -> None:
        """Print a line."""
        self._print(message)

    def tick(self) -> None:
        """Print the status if nothing has been printed for some time."""
        if self._status and self._clock() - self._printed_at >= self._interval_s:
            self._print(self.status)

    def close(self) -> None:
        """Print nothing more."""
        self._ticker.stop()

    def _print(self, line: str) -> None:
        self._printed_at = self._clock()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class NotebookProgress(StatusProgress):
    """Show one output of a Jupyter cell that is updated in place.

    It needs neither ipywidgets nor an extension, and the last state is saved with the notebook.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._start: list[str] = []
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._record: IterationRecord | None = None
        self._left_s = 0.0
        self._output: Any = None
        self._ticker = _Ticker(self._show, _NOTEBOOK_INTERVAL_S)

    def on_status(self, message: str) -> None:
        """Show ``message`` below the metrics."""
        super().on_status(message)
        self._ticker.start()
        self._show()

    def on_start(self, report: StartReport) -> None:
        """Show the run directory and resources."""
        self._start = format_start(report)
        self.on_status(f"running iteration {report.first_iteration + 1}")

    def on_iteration(self, record: IterationRecord) -> None:
        """Show the metrics of the iteration."""
        self._left_s, self._record = self._advance(record), record
        self._show()

    def on_event(self, message: str) -> None:
        """Show the message among the latest events."""
        self._events.append(message)
        self._show()

    def close(self) -> None:
        """Show the last state without a status."""
        self._ticker.stop()
        self._status = ""
        if self._output is not None:
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        content = {"text/html": self._html(), "text/plain": self._text()}
        if self._output is None:
            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)

    def _html(self) -> str:
        parts = []
        if self._record is not None:
            record = self._record
            parts.append(
                f'<progress style="width: 100%" max="{record.iterations}" '
                f'value="{record.iteration + 1}"></progress><br>'
                f"iteration {record.iteration + 1} of {record.iterations}, "
                f"{format_duration(record.elapsed_s)} elapsed, "
                f"{format_duration(self._left_s)} left"
            )
            rows = "".join(
                f'<tr><td style="text-align: left">{name}</td>'
                '<td style="text-align: left; white-space: pre-wrap">'  # keeps the gaps of values
                f"{html.escape(Text.from_markup(text).plain)}</td></tr>"
                for name, text in metric_rows(record, self._best)
            )
            parts.append(f"<table>{rows}</table>")
        lines = [*self._start, *self._events, *([self.status] if self._status else [])]
        if lines:
            text = html.escape("\n".join(lines))
            parts.append(f'<pre style="white-space: pre-wrap; font-family: monospace">{text}</pre>')
        return "".join(parts)

    def _text(self) -> str:
        lines = [*self._start, *self._events]
        if self._record is not None:
            lines.append(format_iteration(self._record, self._left_s))
        return "\n".join([*lines, *([self.status] if self._status else [])])


class _Ticker:
    """Call a function regularly from a thread until stopped.

    Args:
        call: the function.
        interval_s: seconds between two calls.
    """

    def __init__(self, call: Callable[[], None], interval_s: float) -> None:
        self._call, self._interval_s = call, interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after a running call."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=self._interval_s + 1.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._call()


def make_progress(console: Console) -> StatusProgress:
    """Return the display for a notebook, for a terminal, or for a log."""
    if console.is_jupyter:
        return NotebookProgress(console)
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)


@contextmanager
def status_line(console: Console, message: str) -> Iterator[Callable[[str], None]]:
    """Show ``message`` and its seconds inside the block; yield a function that replaces it."""
    with closing(make_progress(console)) as progress:
        progress.on_status(message)
        yield progress.on_status
