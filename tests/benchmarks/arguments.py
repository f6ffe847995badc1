"""What the benchmarks' command lines have in common: numbers that make sense."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
"""This checkout."""


def count(text: str) -> int:
    """A number of things, at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def share(text: str) -> float:
    """A share of a whole, less than all of it."""
    number = float(text)
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError("a share is at least 0 and below 1")
    return number


def parse_checkouts(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the options that name another checkout and the settings file; parse and check them."""
    parser.add_argument("--beside", type=Path, help="another checkout to measure as well")
    parser.add_argument("--settings", type=Path, default=HERE / "deploy.yaml", help="settings file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    chosen = parser.parse_args()
    if chosen.beside and not (chosen.beside / "maml_ray").is_dir():
        parser.error(f"{chosen.beside} is no checkout: it has no folder maml_ray")
    if not chosen.settings.is_file():
        parser.error(f"there is no settings file {chosen.settings}")
    return chosen
