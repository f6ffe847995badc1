"""``make reproduce``: run all experiments in sequence; an interrupted command resumes.

QUICK=1 uses one seed of each: about an hour and a half on 2 cores instead of three hours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.reproduction.experiments import COMPARED, MAIN, SHORT
from tests.reproduction.results import write_results
from tests.reproduction.runs import evaluate, train

SEEDS = (0, 1, 2)


def main() -> None:
    """Train, evaluate, and write the table and the plots after every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of each")
    parser.add_argument("--only", nargs="*", default=(), help="experiments by name")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"))
    arguments = parser.parse_args()
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    work = [(experiment, seed) for seed in seeds for experiment in MAIN]
    # Baselines have one seed: they show the size of an effect, not its spread.
    work += [(experiment, SEEDS[0]) for experiment in (*SHORT, *COMPARED)]
    if arguments.only:
        work = [(one, seed) for one, seed in work if one.name in arguments.only]
    done: dict[str, list[Path]] = {}
    for experiment, seed in work:
        folder = train(arguments.runs, experiment, seed)
        evaluate(folder, experiment.steps)
        done.setdefault(experiment.name, []).append(folder.path)
        table = write_results(done, arguments.output)
        print(table.read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
