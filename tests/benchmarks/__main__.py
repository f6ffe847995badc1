"""``make bench``: a table of ratios, optionally kept as JSON or compared with a kept file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread a contender: the comparison is of one core's work.
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import torch

from tests.benchmarks import arguments, collection, iteration, learner, serving, table
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.ratios import Ratio, compare, medians

CONTESTS = (
    ("half-cheetah-backward", 4),
    ("half-cheetah-backward", 10),
    ("half-cheetah-backward", 20),
    ("ant-direction", 20),
    ("walker2d-random-dynamics", 20),
    ("hopper-random-dynamics", 20),
    (collection.SWIMMERS, 20),
)
"""Families, and the number of episodes collected at once."""


def main() -> int:
    """Measure, print and compare; return the exit code."""
    chosen = _arguments()
    kept = _kept(chosen.against) if chosen.against is not None else None
    torch.set_num_threads(1)
    machine_info, package_versions = machine(), versions()
    collected = tuple(collection.measure(*contest, chosen.rounds) for contest in CONTESTS)
    updates = learner.measure_both(threads=os.cpu_count() or 1)
    whole = iteration.measure(chosen.settings, chosen.iterations)
    served = serving.measure(chosen.serving_rounds, serving.SECONDS)
    ratios: dict[str, Ratio] = {}
    measured = [one.ratios() for one in collected] + [one.ratios() for one in updates]
    for some in (*measured, whole.ratios(), served.ratios()):
        ratios |= some
    results = {
        "machine": machine_info,
        "versions": package_versions,
        "rounds": chosen.rounds,
        "iterations": chosen.iterations,
        "serving_rounds": chosen.serving_rounds,
        "settings": chosen.settings,
        "collection": [asdict(result) for result in collected],
        "learner": [asdict(result) for result in updates],
        "iteration": asdict(whole),
        "serving": asdict(served),
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    if chosen.json == "-":
        print(json.dumps(results, indent=2))
    else:
        _print(table.heading(machine_info, package_versions))
        _print(table.collections(collected))
        _print(learner.describe(updates))
        _print(table.iteration(whole))
        _print(serving.describe(served))
        if chosen.json is not None:
            Path(chosen.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if kept is None:
        return 0
    found = compare({name: ratio.median for name, ratio in ratios.items()}, kept, chosen.tolerance)
    _print(found.lines, file=sys.stderr if chosen.json == "-" else sys.stdout)
    for sentence in found.fallen:
        print(sentence, file=sys.stderr)
    return 1 if found.fallen else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="also write all results to FILE; without FILE, print JSON instead of the table",
    )
    parser.add_argument("--rounds", type=arguments.count, default=15, help="interleaved rounds")
    parser.add_argument(
        "--iterations", type=arguments.count, default=20, help="training iterations"
    )
    parser.add_argument(
        "--serving-rounds", type=arguments.count, default=5, help="interleaved rounds of serving"
    )
    parser.add_argument("--settings", default="deploy.yaml", help="settings file to train")
    parser.add_argument(
        "--against",
        metavar="FILE",
        help="compare the ratios with a file written by --json; exit code 1 if one has fallen",
    )
    parser.add_argument(
        "--tolerance", type=arguments.share, default=0.1, help="allowed fall (default: 0.1)"
    )
    return parser.parse_args()


def _kept(file: str) -> dict[str, float]:
    """Return the medians of a kept file; exit with code 2 and one sentence if it has none."""
    try:
        return medians(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"make bench: {file} cannot be compared with: {error}", file=sys.stderr)
        sys.exit(2)


def _print(lines: Any, file: Any = None) -> None:
    for line in lines:
        print(line, file=file)
    print(file=file)


if __name__ == "__main__":
    sys.exit(main())
