"""Ratios of times within one run, their spread, and whether they have fallen since a kept run.

A time depends on the machine as much as on the code; the ratio of two interleaved times depends
little on the machine. In all ratios more is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ratio:
    """A ratio over the rounds of one run; more is better.

    Attributes:
        median: of the rounds.
        low, high: their 10th and 90th percentile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: NDArray[np.float64]) -> Ratio:
        """Create from the ratios of the rounds, one each."""
        low, median, high = np.percentile(rounds, [10, 50, 90])
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:5.2f}   {self.low:5.2f} - {self.high:.2f}"


@dataclass(frozen=True)
class Comparison:
    """The ratios of this run and of a kept one.

    Attributes:
        lines: a table of both.
        fallen: one sentence for each ratio that has fallen too far.
    """

    lines: tuple[str, ...]
    fallen: tuple[str, ...]


def compare(now: Mapping[str, float], kept: Mapping[str, float], tolerance: float) -> Comparison:
    """Compare medians with kept ones.

    A ratio that only one run has is listed and is no failure: a peer may not be installed, or a
    benchmark may be new.

    Args:
        now: medians of this run, by name.
        kept: medians of the kept run.
        tolerance: allowed fall of a ratio, as a share of the kept one.
    """
    lines, fallen = [f"{'':<68}{'kept':>8}{'now':>8}{'change':>9}"], []
    for name in sorted({*now, *kept}):
        if name not in now or name not in kept:
            side = "not measured now" if name in kept else "not in the kept file"
            lines.append(f"{name:<68}{side:>25}")
            continue
        change = now[name] / kept[name] - 1.0
        lines.append(f"{name:<68}{kept[name]:>8.3f}{now[name]:>8.3f}{change:>+9.1%}")
        if not change >= -tolerance:  # also if it is NaN
            fallen.append(
                f"{name} has fallen from {kept[name]:.3f} to {now[name]:.3f}, by {-change:.1%}: "
                f"more than the tolerance of {tolerance:.1%}"
            )
    return Comparison(tuple(lines), tuple(fallen))


def medians(kept: Any) -> dict[str, float]:
    """Return the medians in the parsed content of a file written by ``--json``.

    Raises:
        ValueError: it is another kind of file.
    """
    try:
        found = {str(name): float(ratio["median"]) for name, ratio in kept["ratios"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("it has no table of ratios, as --json writes it") from None
    broken = [name for name, median in found.items() if not median > 0.0]
    if broken:
        raise ValueError(f"{broken[0]} is not above 0")
    return found
