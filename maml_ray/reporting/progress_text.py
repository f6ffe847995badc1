"""Put a run's start, iterations and durations into words, for every display of its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from maml_ray.persistence.records import IterationRecord, StartReport

if TYPE_CHECKING:
    from maml_ray.learning.state import UpdateMetrics


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
        took = f"{report.connect_s:.1f} s for Ray and {report.actors_s:.1f} s for the actors"
        lines.append(f"resuming    at iteration {report.first_iteration}, after {took}")
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


def metric_rows(record: IterationRecord, best: float) -> list[tuple[str, str]]:
    """Return names and texts, in rich's markup, of the metrics that a display shows.

    Each row fits on one line of a terminal 80 characters wide.
    """
    update = record.update
    rows = [
        (
            "return",
            f"before adaptation [bold]{update.return_before:8.1f}[/]"
            f"   after [bold green]{update.return_after:8.1f}[/]"
            f"   best after {best:8.1f}",
        )
    ]
    if update.speed_before is not None and update.speed_after is not None:
        rows.append(
            (
                "m/s",
                f"before adaptation {update.speed_before:8.2f}   after {update.speed_after:8.2f}",
            )
        )
    rows += [
        (name[:8], f"before adaptation {first:8.3g}   after {last:8.3g}")
        for name, first, last in _reported(update.infos_before, update.infos_after)
    ]
    return [
        *rows,
        (
            "learning",
            f"meta-loss {update.loss:+.4f}   gradient {update.gradient_norm:.3f}"
            f"   entropy {update.entropy:.2f} nats{_format_skip(update)}",
        ),
        (
            "speed",
            f"{record.steps_per_second:,.0f} env steps/s"
            f"   {record.total_env_steps / 1e6:.2f} million so far{_format_staleness(update)}",
        ),
        ("time", format_time_shares(record)),
    ]


def _format_staleness(update: UpdateMetrics) -> str:
    behind = update.staleness
    return f"  data {behind} version{'s' if behind > 1 else ''} behind" if behind else ""


def _format_skip(update: UpdateMetrics) -> str:
    return "" if update.skipped is None else f"  update skipped: {update.skipped}"


def _format_speeds(update: UpdateMetrics) -> str:
    if update.speed_before is None or update.speed_after is None:
        return format_infos(update.infos_before, update.infos_after)
    speeds = f"  m/s {update.speed_before:5.2f} {update.speed_after:5.2f}"
    return speeds + format_infos(update.infos_before, update.infos_after)


def format_infos(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> str:
    """Return name and means of each of ``task.info_metrics`` that is reported, to append."""
    return "".join(
        f"  {name} {first:.3g} {last:.3g}" for name, first, last in _reported(before, after)
    )


def _reported(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> Iterator[tuple[str, float, float]]:
    for name, first in before.items():
        last = after.get(name)
        if first is not None and last is not None:
            yield name, first, last


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
