"""Train, evaluate and draw the experiments of docs/results.md; ``make reproduce`` calls it.

Everything finished is kept: the same command continues where an interrupted one stopped. The table
and the plots are written after every run, from the runs that are finished.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from maml_ray.common.errors import UserError
from maml_ray.evaluation.video import VideoUnavailable
from tests.reproduction.animations import write_animations
from tests.reproduction.experiments import EXPERIMENTS, Experiment, select
from tests.reproduction.results import write_results
from tests.reproduction.runs import CommandFailed, complete


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 1 if a run could not be finished."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        runs = select(options.only, options.seeds)
    except ValueError as error:
        parser.error(f"--only {error}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    failures: list[str] = []
    for experiment, seed in () if options.report else runs:
        failure = _complete(options.runs, experiment, seed)
        if failure is None:
            write_results(options.runs, runs, options.output)
        else:
            print(failure, file=sys.stderr, flush=True)
            failures.append(failure)
    if options.animations:
        failures += _animate(options.runs, runs, options.output)
    print(write_results(options.runs, runs, options.output))
    print(f"written to {options.output}: table.md, plots.md and the plots")
    return 1 if failures else 0


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return seeds from a number of seeds, ``3``, or a list, ``0,2``; of a single seed ``2,``."""
    parts = text.split(",")
    numbers = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if not all(part.isascii() and part.isdigit() for part in numbers) or text == "0":
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed: write a number of seeds, such as 3, or a list, such as 0,2 "
            "(of a single seed: 2,)"
        )
    seeds = tuple(int(part) for part in numbers)
    return seeds if len(parts) > 1 else tuple(range(seeds[0]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.reproduction", description=__doc__)
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help=f"of: {names}")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--quick", dest="seeds", action="store_const", const=(0,), help="one seed")
    seeds.add_argument(
        "--seeds",
        type=parse_seeds,
        help="number of seeds, such as 3, or a list, such as 0,2; by default those of each "
        "experiment",
    )
    parser.add_argument(
        "--report", action="store_true", help="train and evaluate nothing; write what is finished"
    )
    parser.add_argument(
        "--animations", action="store_true", help="also record films before and after adaptation"
    )
    folder = Path("runs/reproduction")
    parser.add_argument("--runs", type=Path, default=folder, help="folder of the runs")
    parser.add_argument("--output", type=Path, default=folder, help="folder of table and plots")
    return parser


def _complete(base: Path, experiment: Experiment, seed: int) -> str | None:
    """Train and evaluate a run; return why it could not be done."""
    try:
        complete(base, experiment, seed)
    except (UserError, CommandFailed) as error:
        return f"{experiment.name}, seed {seed}: {error}"
    return None


def _animate(base: Path, runs: Sequence[tuple[Experiment, int]], output: Path) -> list[str]:
    """Write the animations; return why they could not be written."""
    try:
        for path in write_animations(base, runs, output):
            print(path)
    except (UserError, VideoUnavailable) as error:
        print(error, file=sys.stderr)
        return [str(error)]
    return []


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: the same command continues here", file=sys.stderr)
        sys.exit(130)
