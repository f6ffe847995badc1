"""Commands that watch runs on a cluster: ``status`` and ``evaluate --follow``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from maml_ray.cli.options import ConnectAddress, Panel
from maml_ray.cli.tables import print_line
from maml_ray.common.errors import Interrupted

if TYPE_CHECKING:
    from maml_ray.common.signals import StopRequest
    from maml_ray.monitoring.registry import RunEntry
    from maml_ray.runs.evaluate import EvaluationConfig

_REFRESH_S = 2.0


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(rich_help_panel=Panel.CLUSTERS)(status)


def status(
    address: ConnectAddress = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line per refresh.")
    ] = False,
) -> None:
    """Show the runs on a cluster: progress and returns.

    Prints iteration, return before and after adaptation, environment steps per second, rollout
    actors, age of the last checkpoint, and start time. Takes a few seconds.

    [bold]Examples[/bold]

      maml-ray status

      maml-ray status --address 10.0.0.1:6379 --watch
    """
    from maml_ray.monitoring.registry import joined, list_runs

    console = Console()
    with joined(address) as session:
        if watch:
            _watch(console, list_runs, as_json, session.check)
        else:
            _show(console, list_runs(), as_json)


def _watch(
    console: Console,
    read_runs: Callable[[], Sequence[RunEntry]],
    as_json: bool,
    check: Callable[[], None],
) -> None:
    from maml_ray.cli.runs_table import runs_table
    from maml_ray.common.signals import StopRequest

    with StopRequest(check) as stop, suppress(Interrupted):  # Ctrl-C ends the command normally
        if as_json or not console.is_terminal:
            while True:
                _show(console, read_runs(), as_json)
                _pause(stop)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(runs_table(read_runs()), refresh=True)
                _pause(stop)


def _pause(stop: StopRequest) -> None:
    time.sleep(_REFRESH_S)
    stop.check()


def follow_run(
    name: str, config: EvaluationConfig, *, every: int, address: str | None, output: Path | None
) -> None:
    """Evaluate a run while it trains: ``maml-ray evaluate --follow``.

    Raises:
        UserError: there is no such run, or the evaluation is invalid.
        Interrupted: SIGINT or SIGTERM.
    """
    from maml_ray.common.signals import StopRequest
    from maml_ray.monitoring.registry import find_run, joined
    from maml_ray.runs.follow import FollowLog, follow
    from maml_ray.runs.remote_source import RemoteRun

    console = Console()
    with joined(address) as session, StopRequest(session.check) as stop:
        run = find_run(name)
        timestamp = time.strftime("%Y%m%d-%H%M%S")
        directory = output or Path("runs") / f"{run.run}-followed-{timestamp}"
        with closing(FollowLog(directory)) as log:
            print_line(console, f"following {run}, writing to {directory}")
            os.nice(19)  # give training on the same machine precedence

            def on_evaluated(evaluated: Any) -> None:
                log.add(evaluated)
                print_line(console, evaluated.format_line())

            count = follow(
                RemoteRun(run, check_stop=stop.check),
                config,
                every=every,
                check_stop=stop.check,
                on_evaluated=on_evaluated,
                on_error=lambda version, message: print_line(
                    console, f"version {version}: {message}"
                ),
            )
        print_line(console, f"{run} has ended; {count} versions were evaluated: {directory}")


def _show(console: Console, runs: Sequence[RunEntry], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_to_dict(run) for run in runs]), flush=True)
    else:
        from maml_ray.cli.runs_table import runs_table

        console.print(runs_table(runs))


def _to_dict(run: RunEntry) -> dict[str, Any]:
    status = {} if run.status is None else asdict(run.status)
    return {**asdict(run.run_id), "problem": run.problem, "told_s_ago": run.status_age_s, **status}
