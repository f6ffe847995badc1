"""Commands that write plots and tables of finished runs: compare, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maml_ray.cli.options import Panel, Run, path_of
from maml_ray.cli.tables import print_comparison, print_line, print_notes
from maml_ray.common.errors import UserError
from maml_ray.reporting.progress import status_line


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (compare, report):
        app.command(rich_help_panel=Panel.RUNS)(command)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or directories that contain them.",
            parser=path_of("RUN"),
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="Directory for the plot and the table.", parser=path_of("--output")),
    ] = Path("comparison"),
    by: Annotated[
        str, typer.Option(help="Horizontal axis of the plot: steps, time or iterations.")
    ] = "steps",
) -> None:
    """Compare runs in one plot and one table, aggregated over seeds of the same settings.

    Uses evaluation returns if every seed of a group has been evaluated, else training returns.
    Reports the mean with a 95% interval over seeds, the interquartile mean, and the
    range of the seeds.

    [bold]Example[/bold]

      maml-ray compare runs/ppo-seed0 runs/ppo-seed1 runs/trpo-seed0
    """
    from maml_ray.reporting.comparison import summarize, write_comparison
    from maml_ray.reporting.plots.training import X_AXES
    from maml_ray.reporting.run_groups import (
        describe_different_tasks,
        group_by_settings,
        read_runs,
        without_duplicates,
    )

    if by not in X_AXES:
        raise UserError(
            f"--by {by:.40} is not allowed: write {', '.join(X_AXES[:-1])} or {X_AXES[-1]}"
        )

    console = Console()
    with status_line(console, "comparing runs"):
        distinct, notes = without_duplicates(read_runs(runs))
        groups = group_by_settings(distinct)
        summaries = [summarize(group) for group in groups]
        written = write_comparison(groups, output, by)
    print_notes(console, notes + describe_different_tasks(groups))
    print_comparison(console, summaries)
    for path in written:
        print_line(console, path)


def report(run: Run) -> None:
    """Write the plots and report.html of a run again, from the files in its directory.

    [bold]Example[/bold]

      maml-ray report runs/half-cheetah-backward-20260101-120000
    """
    console = Console()
    with status_line(console, "writing plots and report"):
        from maml_ray.evaluation.results_file import read_evaluation
        from maml_ray.persistence.run_dir import open_run_dir
        from maml_ray.runs.evaluate import report_run

        run_dir = open_run_dir(run)
        evaluated = os.path.lexists(run_dir.evaluation)
        results = read_evaluation(run_dir.evaluation) if evaluated else None
        path = report_run(run_dir, results)
    print_line(console, path)
