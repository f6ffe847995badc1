"""Commands that make a policy of a trained run: adapted to a task, or exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from maml_ray.cli.options import Checkpoint, Imports, Panel, Run, Seed, path_of
from maml_ray.cli.tables import print_line
from maml_ray.common.errors import UserError
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.reporting.progress import status_line

_TASK_HELP = "Name of the task, or its parameters, for example '{\"direction\": -1}'."


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (adapt, export):
        app.command(rich_help_panel=Panel.RUNS)(command)


def adapt(
    run: Run,
    task: Annotated[str, typer.Option(metavar="TASK", help=_TASK_HELP)],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_ADAPTATION_STEPS, help="Inner steps.", show_default="the run's"
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes per support set.", show_default="as in training"),
    ] = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = "newest",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory to create.",
            show_default="RUN/adapted/TASK",
            parser=path_of("--output"),
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Adapt a trained policy to one task and save it as a policy.

    Writes parameters.safetensors and policy.json, which maml_ray.load and any PyTorch program
    can read (see: maml-ray docs evaluation).

    [bold]Example[/bold]

      maml-ray adapt runs/direction-20260101-120000 --task '{"direction": -1}'
    """
    console = Console()
    with status_line(Console(stderr=True), "loading PyTorch") as on_status:
        from maml_ray.runs.adapt import adapt_run
        from maml_ray.tasks.loading import import_modules

        import_modules(imports or (), run)
        adapted = adapt_run(
            run,
            _parse_task(task),
            steps=steps,
            episodes=episodes,
            seed=seed,
            checkpoint=checkpoint,
            output=output,
            on_status=on_status,
        )
    print_line(
        console,
        f"{adapted.task.name}: return {adapted.before:.1f} before, {adapted.after:.1f} after "
        f"{adapted.steps} step{'' if adapted.steps == 1 else 's'}",
    )
    print_line(console, adapted.folder)


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory, or folder of an adapted policy.",
            parser=path_of("RUN"),
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="onnx or torchscript.",
            show_default="by --output's suffix, else onnx",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write.",
            show_default="RUN/policy.onnx or .pt",
            parser=path_of("--output"),
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help=f"Adapt to it first. {_TASK_HELP}")
    ] = None,
    checkpoint: Checkpoint = "newest",
    imports: Imports = None,
) -> None:
    """Export a policy as ONNX or TorchScript, to act without maml_ray.

    The file takes observations as the environment returns them and gives actions as it takes
    them: normalization of observations and the action scale are part of it. It is run at 1,000
    observations and kept only if it computes what the policy does; ONNX needs
    pip install 'maml-ray\\[export]'.

    With --task, the policy first takes the run's number of inner steps in simulation; for another
    number, use maml-ray adapt and export the folder that it writes.

    [bold]Examples[/bold]

      maml-ray export runs/direction-20260101-120000 --format onnx

      maml-ray export runs/direction-20260101-120000 --task backward --output backward.pt
    """
    console = Console()
    with status_line(Console(stderr=True), "loading PyTorch"):
        from maml_ray.evaluation.loading import load
        from maml_ray.evaluation.model_export import SUFFIXES, check_format, export_model
        from maml_ray.runs.adapt import file_name_of
        from maml_ray.tasks.loading import import_modules

        import_modules(imports or (), run)
        agent = load(run, checkpoint=checkpoint)
        name = "policy"
        if task is not None:
            wanted = agent.task(_parse_task(task))
            name = f"policy-{file_name_of(wanted)}"
        if output is None:
            format = format or "onnx"
            output = run / f"{name}{SUFFIXES.get(format, '')}"
        format = check_format(output, format)
        if task is not None:
            agent = agent.adapt(wanted)
        exported = export_model(agent, output, format=format)
    print_line(console, exported.path)
    for kind, arrays in (("input", exported.inputs), ("output", exported.outputs)):
        for array, shape in arrays.items():
            print_line(console, f"{kind:7} {array} {shape}")
    print_line(
        console,
        "not checked: onnxruntime is not installed (pip install 'maml-ray[export]')"
        if exported.difference is None
        else "checked at 1,000 observations: largest difference from the policy "
        f"{exported.difference:.1g}",
    )


def _parse_task(text: str) -> str | dict[str, Any]:
    """Return the name of a task, or its parameters if ``text`` is JSON."""
    example = "write JSON such as '{\"direction\": -1}'"
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        if text[:1].isalpha():
            return text
        raise UserError(f"--task {text[:80]} cannot be read: {example}") from None
    if not isinstance(parameters, dict) or not all(
        isinstance(value, int | float | str) for value in parameters.values()
    ):
        raise UserError(f"--task {text[:80]} is not an object of numbers and text: {example}")
    return parameters
