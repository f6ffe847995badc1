"""The commands that look at runs on a cluster: status, and evaluate's --follow."""

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

from maml_ray.common.errors import Interrupted

if TYPE_CHECKING:
    from maml_ray.common.signals import StopRequest
    from maml_ray.monitoring.registry import RunSeen
    from maml_ray.runs.evaluate import EvaluationConfig

_REFRESH_S = 2.0

Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: 'auto', host:port or ray://host:port. Without one, that of this "
        "machine; a submitted job uses its own."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Make the commands known."""
    app.command()(status)


def status(
    address: Address = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON for programs: one line a look.")
    ] = False,
) -> None:
    """Show the runs that train on a cluster: how far they are, and how well they do.

    Iteration, return before and after adaptation, steps a second, rollout actors, the age of the
    last safe checkpoint, and since when each has trained. An answer takes seconds.

    [bold]Examples[/bold]

      maml-ray status

      maml-ray status --address 10.0.0.1:6379 --watch
    """
    from maml_ray.monitoring.registry import joined, look_at_runs

    console = Console()
    with joined(address):
        if watch:
            _watch(console, look_at_runs, as_json)
        else:
            _show(console, look_at_runs(), as_json)


def _watch(console: Console, look: Callable[[], Sequence[RunSeen]], as_json: bool) -> None:
    from maml_ray.cli.runs_table import runs_table
    from maml_ray.common.signals import StopRequest

    with StopRequest() as stop, suppress(Interrupted):  # Ctrl-C is how one stops to watch
        if as_json or not console.is_terminal:
            while True:
                _show(console, look(), as_json)
                _pause(stop)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(runs_table(look()), refresh=True)
                _pause(stop)


def _pause(stop: StopRequest) -> None:
    time.sleep(_REFRESH_S)
    stop.check()


def follow_run(
    name: str, config: EvaluationConfig, *, every: int, address: str | None, output: Path | None
) -> None:
    """Evaluate a run while it trains; what ``maml-ray evaluate --follow`` does.

    Raises:
        UserError: there is no such run, or what is asked for cannot be done.
        Interrupted: Ctrl-C or SIGTERM.
    """
    from maml_ray.common.signals import StopRequest
    from maml_ray.monitoring.registry import find_run, joined
    from maml_ray.runs.follow import FollowLog, follow
    from maml_ray.runs.remote_source import RemoteRun

    console = Console()
    with joined(address), StopRequest() as stop:
        run = find_run(name)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = output or Path("runs") / f"{run.run}-followed-{stamp}"
        with closing(FollowLog(folder)) as log:
            _print(console, f"following {run}, rows go to {folder}")
            os.nice(19)  # what trains on the same machine goes first

            def on_evaluated(judged: Any) -> None:
                log.add(judged)
                _print(console, judged.line())

            judged = follow(
                RemoteRun(run, check_stop=stop.check),
                config,
                every=every,
                check_stop=stop.check,
                on_evaluated=on_evaluated,
                on_problem=lambda version, told: _print(console, f"version {version}: {told}"),
            )
        _print(console, f"{run} has ended; {judged} versions were evaluated: {folder}")


def _show(console: Console, seen: Sequence[RunSeen], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_as_row(one) for one in seen]), flush=True)
    else:
        from maml_ray.cli.runs_table import runs_table

        console.print(runs_table(seen))


def _as_row(one: RunSeen) -> dict[str, Any]:
    told = {} if one.status is None else asdict(one.status)
    return {**asdict(one.name), "problem": one.problem, "told_s_ago": one.told_s_ago, **told}


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
