"""The benchmarks' own arithmetic: which ratios have fallen, and what is only on one side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.ratios import Ratio, compare, medians

KEPT = Path(__file__).parent / "reference.json"


def test_a_ratio_is_the_median_of_rounds_between_its_percentiles() -> None:
    assert Ratio.of(np.arange(101.0)) == Ratio(median=50.0, low=10.0, high=90.0)


def test_what_has_fallen_by_more_than_the_tolerance_is_a_sentence() -> None:
    found = compare({"a": 0.89, "b": 0.91, "c": 3.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, 0.1)
    assert found.fallen == (
        "a has fallen from 1.000 to 0.890, by 11.0%: more than the tolerance of 10.0%",
    )


def test_the_tolerance_is_a_share_of_the_kept_ratio() -> None:
    assert compare({"a": 9.1}, {"a": 10.0}, 0.1).fallen == ()
    assert len(compare({"a": 8.9}, {"a": 10.0}, 0.1).fallen) == 1


def test_a_ratio_that_is_no_number_has_fallen() -> None:
    assert len(compare({"a": float("nan")}, {"a": 1.0}, 0.1).fallen) == 1


def test_what_only_one_side_has_is_named_and_does_not_fail() -> None:
    found = compare({"new": 1.0, "both": 1.0}, {"old": 1.0, "both": 1.0}, 0.0)
    assert found.fallen == ()
    told = {line.split()[0]: line for line in found.lines[1:]}
    assert told["new"].endswith("not in the kept file")
    assert told["old"].endswith("not measured now")
    assert told["both"].split()[1:] == ["1.000", "1.000", "+0.0%"]


@pytest.mark.parametrize(
    "parsed", [[], {}, {"ratios": 3}, {"ratios": {"a": 1.0}}, {"ratios": {"a": {"median": 0.0}}}]
)
def test_a_file_of_something_else_is_refused(parsed: object) -> None:
    with pytest.raises(ValueError, match=r"ratios|above 0"):
        medians(parsed)


def test_the_reference_that_is_kept_can_be_compared_with() -> None:
    kept = medians(json.loads(KEPT.read_text(encoding="utf-8")))
    assert "half-cheetah-backward, 20 episodes: share of physics speed" in kept
    assert compare(kept, kept, 0.0).fallen == ()
