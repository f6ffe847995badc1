"""Show the progress of a run: a live display on a terminal, else one line per iteration."""

from __future__ import annotations

from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from maml_ray.learning.state import UpdateMetrics
from maml_ray.persistence.records import IterationRecord, Observer, StartReport

_WINDOW = 10


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


class TerminalProgress:
    """Show a live table below the log; the last state stays on the screen when closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._time_left = TimeLeftEstimator()
        self._best = float("-inf")
        self._live: Live | None = None

    def on_start(self, report: StartReport) -> None:
        """Print the run directory and resources, and open the display."""
        for line in format_start(report):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._live = Live(
            f"iteration {report.first_iteration + 1} is under way",
            console=self._console,
            refresh_per_second=4,
            transient=False,
        )
        self._live.start(refresh=True)

    def on_iteration(self, record: IterationRecord) -> None:
        """Show the metrics of the iteration."""
        self._best = max(self._best, record.update.return_after)
        if self._live is not None:
            self._live.update(self._render(record, self._time_left.update(record)), refresh=True)

    def on_event(self, message: str) -> None:
        """Print a line above the display."""
        self._console.print(message, style="yellow", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Close the display."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self, record: IterationRecord, left_s: float) -> Group:
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
        update, table = record.update, Table.grid(padding=(0, 2))
        # Two columns, so that each row fits on one line of a terminal 80 characters wide.
        table.add_row(
            "return",
            f"before adaptation [bold]{update.return_before:8.1f}[/]"
            f"   after [bold green]{update.return_after:8.1f}[/]"
            f"   best after {self._best:8.1f}",
        )
        if update.speed_before is not None and update.speed_after is not None:
            table.add_row(
                "m/s",
                f"before adaptation {update.speed_before:8.2f}   after {update.speed_after:8.2f}",
            )
        table.add_row(
            "learning",
            f"meta-loss {update.loss:+.4f}   gradient {update.gradient_norm:.3f}"
            f"   entropy {update.entropy:.2f} nats{_format_skip(update)}",
        )
        table.add_row(
            "speed",
            f"{record.steps_per_second:,.0f} env steps/s"
            f"   {record.total_env_steps / 1e6:.2f} million so far{_format_staleness(update)}",
        )
        table.add_row("time", format_time_shares(record))
        return Group(bar, table)


class PlainProgress:
    """Print one line per iteration, for log files and Ray's job output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._time_left = TimeLeftEstimator()

    def on_start(self, report: StartReport) -> None:
        """Print the run directory and resources."""
        for line in format_start(report):
            self._print(line)

    def on_iteration(self, record: IterationRecord) -> None:
        """Print the metrics of the iteration."""
        self._print(format_iteration(record, self._time_left.update(record)))

    def on_event(self, message: str) -> None:
        """Print a line."""
        self._print(message)

    def close(self) -> None:
        """Do nothing."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def make_progress(console: Console) -> Observer:
    """Return a live display if the console is a terminal, else line-by-line output."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)


def format_start(report: StartReport) -> list[str]:
    """Return lines that describe the run directory and resources."""
    lines = [
        f"run dir     {report.run_directory}",
        f"actors      {report.rollout_actors} rollout actors, one CPU each",
        f"learner     {report.learner}",
    ]
    if report.dashboard_url:
        lines.append(f"dashboard   {report.dashboard_url} (its token: ray get-auth-token)")
    if report.first_iteration:
        lines.append(f"resuming    at iteration {report.first_iteration}")
    if report.attempt > 1:
        lines.append(f"attempt     {report.attempt} at this run; earlier ones can no longer write")
    return lines


def format_iteration(record: IterationRecord, left_s: float) -> str:
    """Return the metrics of an iteration as one line of text."""
    update = record.update
    width = len(str(record.iterations))
    return (
        f"iteration {record.iteration + 1:>{width}}/{record.iterations}"
        f"  return before {update.return_before:7.1f} after {update.return_after:7.1f}"
        f"{_format_speeds(update)}  loss {update.loss:+.4f}  {record.steps_per_second:,.0f} steps/s"
        f"  {format_time_shares(record)}{_format_staleness(update)}"
        f"  elapsed {format_duration(record.elapsed_s)} left {format_duration(left_s)}"
        f"{_format_skip(update)}"
    )


def _format_staleness(update: UpdateMetrics) -> str:
    behind = update.staleness
    return f"  data {behind} version{'s' if behind > 1 else ''} behind" if behind else ""


def _format_skip(update: UpdateMetrics) -> str:
    return "" if update.skipped is None else f"  update skipped: {update.skipped}"


def _format_speeds(update: UpdateMetrics) -> str:
    if update.speed_before is None or update.speed_after is None:
        return ""
    return f"  m/s {update.speed_before:5.2f} {update.speed_after:5.2f}"


def format_time_shares(record: IterationRecord) -> str:
    """Return the share of each phase in the wall time; parallel phases may sum to over 100%."""
    times = record.timings
    parts = {
        "collect": times.collect_s,
        "adapt": times.adapt_s,
        "learn": times.learn_s,
        "rest": times.rest_s,
    }
    return " ".join(f"{name} {seconds / times.wall_s:.0%}" for name, seconds in parts.items())


def format_duration(seconds: float) -> str:
    """Format seconds as 4:05 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
