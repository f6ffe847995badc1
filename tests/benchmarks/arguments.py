"""What the benchmarks' command lines have in common: numbers that make sense."""

from __future__ import annotations

import argparse


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
