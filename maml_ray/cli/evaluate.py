"""Command that measures a trained policy, or the versions of one that trains."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maml_ray.cli.options import (
    Checkpoint,
    ConnectAddress,
    Imports,
    OptionalRun,
    Panel,
    Seed,
    path_of,
)
from maml_ray.cli.tables import print_evaluation, print_line, print_notes
from maml_ray.common.errors import UserError
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.reporting.progress import status_line

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
    """Register the command."""
    app.command(rich_help_panel=Panel.RUNS)(evaluate)


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
