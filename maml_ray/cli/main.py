"""The command line: arguments in, calls out. Mistakes are one sentence and exit code 2."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maml_ray.cli import cluster, evaluate, serve, watch
from maml_ray.cli.options import Overrides, Preset, SettingsFile
from maml_ray.cli.tables import print_evaluation, print_notes
from maml_ray.common.errors import Interrupted, Superseded, TrainingFailed, UserError
from maml_ray.common.signals import ExitOnSignal
from maml_ray.config.loading import dump_settings, load_settings
from maml_ray.config.settings import Settings

app = typer.Typer(
    name="maml-ray",
    help="Meta-reinforcement learning on Ray: train a policy that adapts in one gradient step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def train(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: 'auto', host:port or ray://host:port. Without one, Ray is "
            "started on this machine; a submitted job uses its own cluster."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder; a new one under run.directory by default.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run: its folder, or its URL in storage. 'auto': the run of run.name "
            "in run.storage, or in run.directory; it is begun if it is not there yet.",
        ),
    ] = None,
) -> None:
    """Meta-train a policy, evaluate it, and write a report.

    Everything lands in one run folder: checkpoints, metrics.jsonl, TensorBoard events, plots,
    a video and report.html. Ctrl-C writes a checkpoint; --resume goes on from it.

    [bold]Examples[/bold]

      maml-ray train deploy.yaml

      maml-ray train --set run.iterations=20 --set meta_batch.tasks=4

      maml-ray train --preset notebook

      maml-ray train deploy.yaml --address auto

      maml-ray train --resume runs/half-cheetah-backward-20260101-120000

      maml-ray train deploy.yaml --resume auto
    """
    console = Console()
    extra = list(overrides or [])
    if address is not None:
        extra.append(f"cluster.address={json.dumps(address)}")
    if resume is not None and run_dir is not None:
        raise UserError("--resume names the run folder already: leave --run-dir out")
    if resume not in (None, "auto") and preset is not None:
        raise UserError("--resume takes the run's own settings: leave --preset out")
    from maml_ray.runs.train import open_or_fetch_run  # imports torch and Ray: not for --help
    from maml_ray.runs.train import train as run

    source = settings_file
    if resume not in (None, "auto") and source is None:
        source = open_or_fetch_run(resume).settings
    settings = load_settings(source, preset=preset, overrides=extra)
    result = run(settings, run_dir=run_dir, resume=resume, console=console)
    print_evaluation(console, result.results)
    print_notes(console, result.notes)
    _print_next_steps(console, result.folder.path)


@app.command()
def check(
    settings_file: SettingsFile = None, overrides: Overrides = None, preset: Preset = None
) -> None:
    """Validate settings; print them resolved, and what they ask of the cluster.

    [bold]Example[/bold]

      maml-ray check deploy.yaml --set cluster.rollout_actors=8
    """
    from maml_ray.tasks.registry import resolve_tasks

    settings = load_settings(settings_file, preset=preset, overrides=overrides or ())
    resolve_tasks(settings.task)
    print(dump_settings(settings))
    for line in _demands(settings):
        print(f"# {line}")


@app.command()
def version() -> None:
    """Print the versions of maml-ray and of the packages that its results depend on."""
    from maml_ray.common.versions import versions

    for name, number in versions().items():
        print(f"{name:12} {number}")


def _demands(settings: Settings) -> list[str]:
    """What a run asks of a cluster, in sentences."""
    batch, cluster = settings.meta_batch, settings.cluster
    phases = settings.inner.steps + 1
    steps = batch.tasks * batch.episodes * settings.task.horizon * phases
    actors = cluster.rollout_actors
    turns = (
        "and it works beside the actors"
        if batch.async_collection
        else "it and the actors take turns"
    )
    learner = {
        "auto": "one GPU if the cluster has any, else CPU threads",
        "cpu": "CPU threads",
        "cuda": "one GPU",
    }[cluster.learner_device]
    return [
        f"rollout actors: {actors or 'one for each CPU of the cluster'}, one CPU each"
        + (f" (more than {batch.tasks} would idle)" if (actors or 0) > batch.tasks else ""),
        f"learner: {learner}; no CPU is reserved, {turns}",
        f"an iteration: {batch.tasks} tasks x {batch.episodes} episodes x {settings.task.horizon} "
        f"steps x {phases} phases = {steps:,} env steps",
        f"the run: {settings.run.iterations} iterations, "
        f"{steps * settings.run.iterations:,} env steps",
    ]


def _print_next_steps(console: Console, path: Path) -> None:
    lines = [
        f"run folder   {path}",
        f"report       {path / 'report.html'}",
        "next:",
        f"  maml-ray evaluate {path} --episodes 50",
        f"  tensorboard --logdir {path / 'tensorboard'}",
        f"  python -c \"import maml_ray; agent = maml_ray.load('{path}')\"",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


for group in (cluster, evaluate, watch, serve):
    group.add_commands(app)


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text at all
            stream.reconfigure(errors="backslashreplace")
    try:
        with ExitOnSignal():
            app()
    except (UserError, Superseded) as error:
        print(f"maml-ray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TrainingFailed as error:
        print(f"maml-ray: training failed: {error}{_how_to_go_on(error.run)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as error:
        print(f"maml-ray: {error}{_how_to_go_on(error.run)}", file=sys.stderr)
        sys.exit(error.exit_code)


def _how_to_go_on(run: str | None) -> str:
    if run is None:
        return ""
    return f"\nmaml-ray: what was finished is in {run}; go on with: maml-ray train --resume {run}"
