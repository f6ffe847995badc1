"""The commands that come after training: evaluate, adapt, compare, report."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maml_ray.cli.watch import Address
from maml_ray.common.errors import UserError
from maml_ray.config.limits import MAX_ADAPTATION_STEPS

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that 'train' has made.")]
_LARGEST_SEED = 2**63 - 1

Steps = Annotated[
    str | None,
    typer.Option(metavar="N", help="Measure after 0..N adaptation steps.  [default: the run's]"),
]
Tasks = Annotated[
    int | None,
    typer.Option(min=1, help="Held-out tasks, each adapted to anew.  [default: the run's]"),
]
Episodes = Annotated[
    int | None, typer.Option(min=1, help="Episodes per task and row.  [default: the run's]")
]
Seed = Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Of all the randomness.")]
InnerRate = Annotated[
    float | None,
    typer.Option(help="Adapt with this rate, e.g. to fine-tune a pre-trained run."),
]
Beside = Annotated[
    list[Path] | None,
    typer.Option(metavar="RUN", help="Judge this run's policy alike; may be repeated."),
]
Random = Annotated[bool, typer.Option(help="Judge the untrained policy alike, for comparison.")]
Video = Annotated[
    Path | None, typer.Option(help="Where the video goes.  [default: RUN/evaluation.mp4]")
]
Checkpoint = Annotated[
    str,
    typer.Option(metavar="WHICH", help="newest, best (while it was trained), or its number."),
]
Record = Annotated[bool, typer.Option(help="Record the video.")]
RunOrNone = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="A run folder that 'train' has made.")
]
Follow = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Evaluate a run that trains on a cluster: its run.name."),
]
Every = Annotated[int, typer.Option(min=1, help="Of a run followed: every so many versions.")]
Output = Annotated[
    Path | None,
    typer.Option(help="Of a run followed: folder of its rows; runs/NAME-followed-TIME by default."),
]


def add_commands(app: typer.Typer) -> None:
    """Make the commands known."""
    for command in (evaluate, adapt, compare, report):
        app.command()(command)


def evaluate(
    run: RunOrNone = None,
    steps: Steps = None,
    tasks: Tasks = None,
    episodes: Episodes = None,
    seed: Seed = 0,
    inner_rate: InnerRate = None,
    beside: Beside = None,
    random: Random = True,
    checkpoint: Checkpoint = "newest",
    video: Video = None,
    record: Record = True,
    follow: Follow = None,
    every: Every = 1,
    address: Address = None,
    output: Output = None,
) -> None:
    """Measure a trained policy before and after adaptation.

    For each held-out task: collect a support set, take an inner step, measure, and again. Sampled
    and mean actions, mean with a 95% bootstrap interval, and the mean speed. Figures go to
    RUN/evaluation.json, every episode to RUN/evaluation.csv, all of it into the report, and a
    video shows the policy before and after adaptation, side by side.

    With --follow a run is evaluated while it trains on a cluster, version after version, from a
    process of its own that takes one core, at the lowest priority, and reserves none; a line and a
    row of followed.jsonl each, TensorBoard events, until the run ends.

    [bold]Examples[/bold]

      maml-ray evaluate runs/direction-20260101-120000 --steps 0..3 --tasks 40 --episodes 20

      maml-ray evaluate runs/direction-20260101-120000 --beside runs/pretrained

      maml-ray evaluate --follow direction --tasks 10 --every 10
    """
    from maml_ray.cli.tables import print_evaluation, print_notes
    from maml_ray.persistence.run_dir import open_run_dir
    from maml_ray.runs.evaluate import EvaluationConfig, evaluate_run

    if inner_rate is not None and not 0.0 < inner_rate < math.inf:
        raise UserError(f"--inner-rate {inner_rate} is not allowed: it must be greater than 0")
    if video is not None:
        _check_video(video)
    config = EvaluationConfig(
        tasks=tasks,
        episodes=episodes,
        steps=None if steps is None else _number_of_steps(steps),
        seed=seed,
        inner_rate=inner_rate,
        baselines=tuple(beside or ()),
        untrained=random,
        checkpoint=checkpoint,
        video=record,
        video_path=video,
    )
    if follow is not None:
        if run is not None or beside or video is not None or checkpoint != "newest":
            raise UserError("--follow takes no RUN, --beside, --video or --checkpoint beside it")
        from maml_ray.cli.watch import follow_run

        follow_run(follow, config, every=every, address=address, output=output)
        return
    if every != 1 or address is not None or output is not None:
        raise UserError("--every, --address and --output are for a run that is followed: --follow")
    if run is None:
        raise UserError("name a run folder, or a run on a cluster with --follow")
    console = Console()
    result = evaluate_run(open_run_dir(run), config, console=console)
    print_evaluation(console, result.results)
    print_notes(console, result.notes)
    for path in (result.folder.report, video or result.folder.video):
        if path.exists():
            _print(console, path)


def adapt(
    run: Run,
    task: Annotated[
        str, typer.Option(metavar="JSON", help="The task's parameters, e.g. '{\"direction\": -1}'.")
    ],
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_ADAPTATION_STEPS, help="Inner steps.  [default: the run's]"),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes of a support set.  [default: as in training]"),
    ] = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = "newest",
    output: Annotated[
        Path | None, typer.Option(help="Folder to make.  [default: RUN/adapted/TASK]")
    ] = None,
) -> None:
    """Adapt a trained policy to one task, and write it as a policy of its own.

    The folder holds parameters.safetensors and policy.json: maml_ray.load reads it, and so does
    any PyTorch program (the README shows one).

    [bold]Example[/bold]

      maml-ray adapt runs/direction-20260101-120000 --task '{"direction": -1}'
    """
    from maml_ray.runs.adapt import adapt_run

    parameters = _parameters(task)
    adapted = adapt_run(
        run,
        parameters,
        steps=steps,
        episodes=episodes,
        seed=seed,
        checkpoint=checkpoint,
        output=output,
    )
    console = Console()
    console.print(
        f"{adapted.task.name}: return {adapted.before:.1f} before, {adapted.after:.1f} after "
        f"{adapted.steps} step{'' if adapted.steps == 1 else 's'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    _print(console, adapted.folder)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the plot and the table.")] = Path(
        "comparison"
    ),
) -> None:
    """Put runs into one plot and one table; seeds of the same settings are taken together.

    Returns are those of the runs' evaluations where every seed has one, else training's own.

    [bold]Example[/bold]

      maml-ray compare runs/ppo-seed0 runs/ppo-seed1 runs/trpo-seed0
    """
    from maml_ray.cli.tables import print_comparison
    from maml_ray.reporting.comparison import (
        group_by_settings,
        read_runs,
        summarize,
        write_comparison,
    )

    groups = group_by_settings(read_runs(runs))
    console = Console()
    print_comparison(console, [summarize(group) for group in groups])
    for path in write_comparison(groups, output):
        _print(console, path)


def report(run: Run) -> None:
    """Write the plots and report.html of a run again, from what its folder holds.

    [bold]Example[/bold]

      maml-ray report runs/half-cheetah-backward-20260101-120000
    """
    from maml_ray.evaluation.results_file import read_evaluation
    from maml_ray.persistence.run_dir import open_run_dir
    from maml_ray.runs.evaluate import report_run

    folder = open_run_dir(run)
    there = os.path.lexists(folder.evaluation)
    results = read_evaluation(folder.evaluation) if there else None
    _print(Console(), report_run(folder, results))


def _check_video(path: Path) -> None:
    if path.suffix != ".mp4":
        raise UserError(f"--video {path} is not allowed: give it a name that ends in .mp4")
    if not os.path.isdir(path.parent) or os.path.isdir(path):
        raise UserError(f"--video {path} cannot be written: name a file in a folder that is there")


def _print(console: Console, path: Path) -> None:
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _number_of_steps(text: str) -> int:
    """The N of ``N`` or ``0..N``."""
    match = re.fullmatch(r"(?:0\.\.)?(\d{1,4})", text.strip())
    if match is None or int(match[1]) > MAX_ADAPTATION_STEPS:
        raise UserError(
            f"--steps {text:.80} is not allowed: write 3 or 0..3, up to "
            f"{MAX_ADAPTATION_STEPS}, for the return after each number of steps from 0"
        )
    return int(match[1])


def _parameters(text: str) -> dict[str, float]:
    example = "write JSON such as '{\"direction\": -1}'"
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"--task {text[:80]} cannot be read: {example}") from None
    if not isinstance(parameters, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in parameters.values()
    ):
        raise UserError(f"--task {text[:80]} is not an object of numbers: {example}")
    try:
        return {key: float(value) for key, value in parameters.items()}
    except OverflowError:
        raise UserError(f"--task {text[:80]} holds a number that is too large") from None
