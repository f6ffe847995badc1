"""Commands for trained runs: evaluate, adapt, export, compare, report."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from maml_ray.cli.options import (
    Checkpoint,
    ConnectAddress,
    Imports,
    OptionalRun,
    Panel,
    Run,
    Seed,
    path_of,
)
from maml_ray.cli.tables import print_comparison, print_evaluation, print_line, print_notes
from maml_ray.common.errors import UserError
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.reporting.progress import status_line

_TASK_HELP = "Name of the task, or its parameters, for example '{\"direction\": -1}'."
Steps = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Measure after 0..N adaptation steps.", show_default="the run's"
    ),
]
Tasks = Annotated[int | None, typer.Option(min=1, help="Held-out tasks.", show_default="the run's")]
Episodes = Annotated[
    int | None,
    typer.Option(min=1, help="Episodes per task and number of steps.", show_default="the run's"),
]
AdaptationEpisodes = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Episodes that each adaptation step learns from.",
        show_default="as in training",
    ),
]
InnerRate = Annotated[
    float | None,
    typer.Option(help="Inner learning rate, for example to fine-tune a pre-trained run."),
]
Baselines = Annotated[
    list[Path] | None,
    typer.Option(
        "--beside",
        metavar="RUN",
        help="Also evaluate this run on the same tasks; repeatable.",
        parser=path_of("--beside"),
    ),
]
Untrained = Annotated[
    bool, typer.Option("--random/--no-random", help="Also evaluate the untrained policy.")
]
Video = Annotated[
    Path | None,
    typer.Option(help="Video file.", show_default="RUN/evaluation.mp4", parser=path_of("--video")),
]
Record = Annotated[bool, typer.Option(help="Record the video.")]
Follow = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Evaluate the run with this run.name while it trains."),
]
Every = Annotated[
    int, typer.Option(min=1, help="With --follow: evaluate every N-th version.", metavar="N")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="With --follow: directory for the results.",
        show_default="runs/NAME-followed-TIME",
        parser=path_of("--output"),
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (evaluate, adapt, export, compare, report):
        app.command(rich_help_panel=Panel.RUNS)(command)


def evaluate(
    run: OptionalRun = None,
    steps: Steps = None,
    tasks: Tasks = None,
    episodes: Episodes = None,
    adaptation_episodes: AdaptationEpisodes = None,
    seed: Seed = 0,
    inner_rate: InnerRate = None,
    baselines: Baselines = None,
    untrained: Untrained = True,
    checkpoint: Checkpoint = "newest",
    video: Video = None,
    record: Record = True,
    follow: Follow = None,
    every: Every = 1,
    address: ConnectAddress = None,
    output: Output = None,
    imports: Imports = None,
) -> None:
    """Measure a trained policy before and after adaptation.

    On each held-out task, alternates measurements with inner steps on new support data. Reports
    mean returns with 95% intervals and speeds, for sampled and for mean actions, in
    RUN/evaluation.json and report.html; each episode in RUN/evaluation.csv; and a video of the
    policy before and after adaptation.

    With --follow, evaluates versions of a run while it trains on a cluster, until it ends. It
    uses one core at the lowest priority and reserves none. Each version adds a line to the
    output, to followed.jsonl and to TensorBoard; versions published meanwhile are skipped.

    [bold]Examples[/bold]

      maml-ray evaluate runs/direction-20260101-120000 --steps 0..3 --tasks 40 --episodes 20

      maml-ray evaluate runs/direction-20260101-120000 --beside runs/pretrained

      maml-ray evaluate --follow direction --tasks 10 --every 10
    """
    console = Console()
    with status_line(console, "loading PyTorch"):
        from maml_ray.persistence.run_dir import open_run_dir
        from maml_ray.runs.evaluate import EvaluationConfig, evaluate_run
        from maml_ray.tasks.loading import import_modules

    import_modules(imports or (), run)
    if inner_rate is not None and not 0.0 < inner_rate < math.inf:
        raise UserError(f"--inner-rate {inner_rate} is not allowed: it must be greater than 0")
    if video is not None:
        _check_video(video)
    config = EvaluationConfig(
        tasks=tasks,
        episodes=episodes,
        steps=None if steps is None else _parse_steps(steps),
        adaptation_episodes=adaptation_episodes,
        seed=seed,
        inner_rate=inner_rate,
        baselines=tuple(baselines or ()),
        untrained=untrained,
        checkpoint=checkpoint,
        video=record,
        video_path=video,
    )
    if follow is not None:
        if run is not None or baselines or video is not None or checkpoint != "newest":
            raise UserError(
                "--follow cannot be combined with RUN, --beside, --video or --checkpoint"
            )
        from maml_ray.cli.watch import follow_run

        follow_run(follow, config, every=every, address=address, output=output)
        return
    if every != 1 or address is not None or output is not None:
        raise UserError("--every, --address and --output need --follow")
    if run is None:
        raise UserError("name a run directory, or a run on a cluster with --follow")
    run_dir = open_run_dir(run)
    with status_line(console, "loading the policy") as on_status:
        result = evaluate_run(run_dir, config, on_status=on_status)
    print_evaluation(console, result.results)
    print_notes(console, result.notes)
    for path in (result.folder.report, video or result.folder.video):
        if path.exists():
            print_line(console, path)


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
    from maml_ray.reporting.plots import X_AXES
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


def _check_video(path: Path) -> None:
    if path.suffix != ".mp4":
        raise UserError(f"--video {path} is not allowed: its name must end in .mp4")
    if not os.path.isdir(path.parent) or os.path.isdir(path):
        raise UserError(f"--video {path} cannot be written: name a file in an existing directory")


def _parse_steps(text: str) -> int:
    """Return N for the text ``N`` or ``0..N``."""
    match = re.fullmatch(r"(?:0\.\.)?(\d{1,4})", text.strip())
    if match is None or int(match[1]) > MAX_ADAPTATION_STEPS:
        raise UserError(
            f"--steps {text:.80} is not allowed: write 3 or 0..3, up to "
            f"{MAX_ADAPTATION_STEPS}, for the return after each number of steps from 0"
        )
    return int(match[1])


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
