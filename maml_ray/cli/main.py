"""Define the ``maml-ray`` command; errors are one sentence and an exit code."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from maml_ray.cli import cluster, docs, evaluate, policies, reports, serve, watch
from maml_ray.cli import settings as settings_commands
from maml_ray.cli.options import (
    Imports,
    Iterations,
    Overrides,
    Panel,
    Preset,
    RunSeed,
    SettingsFile,
    StartAddress,
    complete_run,
    path_of,
    with_shorthands,
)
from maml_ray.cli.tables import print_evaluation, print_line, print_notes
from maml_ray.common.commands import import_option, quote_location, resume_hint
from maml_ray.common.errors import (
    ClusterLost,
    Interrupted,
    RunWarning,
    Superseded,
    TrainingFailed,
    UserError,
)
from maml_ray.common.locations import escape_path, parse_location
from maml_ray.common.signals import ExitOnSignal
from maml_ray.common.versions import own_version
from maml_ray.config.loading import dump_settings, load_settings, recorded_folder
from maml_ray.config.renamed_keys import RenamedKeyWarning
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.reporting.progress import show_any_text, status_line

if TYPE_CHECKING:
    from maml_ray.persistence.run_dir import RunDir

app = typer.Typer(
    name="maml-ray",
    help="Meta-reinforcement learning on Ray: train a policy that adapts in one gradient step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"maml-ray {own_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that go before a command."""


@app.command(rich_help_panel=Panel.TRAIN)
def train(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    seed: RunSeed = None,
    iterations: Iterations = None,
    address: StartAddress = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Run directory.",
            show_default="a new one in run.directory",
            parser=path_of("--run-dir"),
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Resume a run: its directory, or its URL in storage. 'auto': resume the run "
            "run.name in run.storage or run.directory, or start it if it does not exist.",
            autocompletion=complete_run,
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Meta-train a policy, evaluate it, and write a report.

    Writes one run directory: checkpoints, metrics.jsonl, TensorBoard events, plots, a video and
    report.html. Ctrl-C writes a checkpoint; --resume continues from it.

    [bold]Examples[/bold]

      maml-ray train deploy.yaml

      maml-ray train --preset direction --seed 1

      maml-ray train --iterations 20 --set meta_batch.tasks=4

      maml-ray train deploy.yaml --address auto

      maml-ray train --resume runs/half-cheetah-backward-20260101-120000

      maml-ray train deploy.yaml --resume auto
    """
    from maml_ray.persistence.run_dir import open_run_dir
    from maml_ray.tasks.loading import import_modules, recorded_module, resolve_tasks

    console = Console()
    named_run = None if resume in (None, "auto") else parse_location(resume, "--resume")
    if resume is not None and run_dir is not None:
        raise UserError("--resume names the run directory already: leave --run-dir out")
    if named_run is not None and preset is not None:
        raise UserError("--resume uses the run's own settings: leave --preset out")
    overrides = with_shorthands(overrides, seed, iterations)
    if address is not None:
        overrides.append(f"cluster.address={json.dumps(address)}")
    recorded = named_run is not None and settings_file is None
    import_modules(imports or (), named_run or recorded_folder(settings_file))
    # Before the imports below, which take long: a mistake is reported at once.
    if not recorded:
        settings = load_settings(settings_file, preset=preset, overrides=overrides)
        resolve_tasks(settings.task)
    if isinstance(named_run, Path):
        open_run_dir(named_run)
    with status_line(console, "loading PyTorch and Ray"):  # which --help does not need
        from maml_ray.runs import train as training

    if named_run is not None and recorded:
        own = training.open_or_fetch_run(named_run).settings
        settings = load_settings(own, overrides=overrides, recorded=True)
    result = training.train(settings, run_dir=run_dir, resume=resume, console=console)
    print_evaluation(console, result.results)
    print_notes(console, result.notes)
    _print_next_steps(console, result.folder, recorded_module(settings.task))


@app.command(rich_help_panel=Panel.SETTINGS)
def check(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    seed: RunSeed = None,
    iterations: Iterations = None,
    imports: Imports = None,
) -> None:
    """Validate settings and try the tasks; print the settings and the resources they need.

    Samples tasks, runs Gymnasium's checker on an environment, and rolls out a few steps of a batch
    with an untrained policy.

    [bold]Example[/bold]

      maml-ray check deploy.yaml --set cluster.rollout_actors=8
    """
    from maml_ray.tasks.loading import import_modules

    import_modules(imports or (), recorded_folder(settings_file))
    overrides = with_shorthands(overrides, seed, iterations)
    settings = load_settings(settings_file, preset=preset, overrides=overrides)
    console = Console(stderr=True)
    with status_line(console, "loading the tasks") as on_status:
        from maml_ray.envs.opengl import import_mujoco
        from maml_ray.maml.losses import outer_objective
        from maml_ray.persistence.run_storage import check_locations
        from maml_ray.rollouts.task_check import check_tasks
        from maml_ray.runs.precompile import compile_ahead
        from maml_ray.tasks.loading import resolve_tasks

        check_locations(settings)
        outer_objective(settings.outer.objective)
        resolve_tasks(settings.task)  # before compiling, which takes long
        compile_ahead(on_status, partial(print_line, console))
        on_status("trying the tasks")
        tasks = check_tasks(settings)
    for problem in tasks.problems[:-1]:
        print(f"maml-ray: {problem}", file=sys.stderr)
    if tasks.problems:
        raise SettingsError(tasks.problems[-1])
    print(dump_settings(settings))
    for line in _describe_requirements(settings):
        print(f"# {line}")
    for line in tasks.notes + tasks.passed:
        print(f"# tasks: {line}")
    if settings.evaluation.video and (missing := import_mujoco()) is not None:
        print(f"# video: {missing}; MuJoCo renders no video")


def version() -> None:
    """Print the versions of maml-ray and of the packages that affect its results."""
    from maml_ray.common.versions import versions

    for name, number in versions().items():
        print(f"{name:12} {number}")


def _describe_requirements(settings: Settings) -> list[str]:
    """Return sentences on the resources and environment steps of a run."""
    batch, cluster = settings.meta_batch, settings.cluster
    phases = settings.inner.steps + 1
    steps = batch.tasks * batch.episodes * settings.task.horizon * phases
    actors = cluster.rollout_actors
    schedule = (
        "runs in parallel with the actors"
        if batch.async_collection
        else "alternates with the actors"
    )
    learner = {
        "auto": "one GPU if the cluster has any, else CPU threads",
        "cpu": "CPU threads",
        "cuda": "one GPU",
    }[cluster.learner_device]
    return [
        f"rollout actors: {actors or 'one per CPU of the cluster'}, one CPU each"
        + (f" (more than {batch.tasks} would be idle)" if (actors or 0) > batch.tasks else ""),
        f"learner: {learner}; reserves no CPU, {schedule}",
        f"an iteration: {batch.tasks} tasks x {batch.episodes} episodes x {settings.task.horizon} "
        f"steps x {phases} phases = {steps:,} env steps",
        f"the run: {settings.run.iterations} iterations, "
        f"{steps * settings.run.iterations:,} env steps",
    ]


def _print_next_steps(console: Console, run_dir: RunDir, module: str | None) -> None:
    path, packages = run_dir.path, "maml_ray" if module is None else f"maml_ray, {module}"
    program = f"import {packages}; agent = maml_ray.load({json.dumps(escape_path(path))})"
    lines = [
        f"run dir      {path}",
        f"report       {run_dir.report}",
        *([f"video        {run_dir.video}"] if run_dir.video.is_file() else []),
        "next:",
        f"  maml-ray evaluate {quote_location(path)} --episodes 50{import_option(module)}",
        f"  {shlex.join(['tensorboard', '--logdir', str(run_dir.tensorboard)])}",
        f"  {shlex.join(['python', '-c', program])}",
    ]
    for line in lines:
        print_line(console, line)


for group in (settings_commands, evaluate, policies, reports, serve, cluster, watch, docs):
    group.add_commands(app)
app.command(rich_help_panel=Panel.HELP)(version)


def main() -> None:
    """Run the command line and exit with its code."""
    show_any_text()
    try:
        with ExitOnSignal(), _warnings_in_one_line():
            app()
    except (UserError, Superseded) as error:
        print(f"maml-ray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (Interrupted, ClusterLost) as error:
        print(f"maml-ray: {error}{resume_hint(error.run, error.module)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TrainingFailed as error:
        print(
            f"maml-ray: training failed: {error}{resume_hint(error.run, error.module)}",
            file=sys.stderr,
        )
        sys.exit(error.exit_code)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings of our own without Python's source line."""
    own = {RenamedKeyWarning: "maml-ray: ", RunWarning: "warning: "}
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(message: Any, category: Any, *arguments: Any, **keywords: Any) -> None:
            if category in own:
                print(f"{own[category]}{message}", file=sys.stderr)
            else:
                show_others(message, category, *arguments, **keywords)

        warnings.showwarning = show
        for category in own:
            warnings.simplefilter("default", category)
        yield
