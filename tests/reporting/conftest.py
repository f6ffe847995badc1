"""Records of a made-up run."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from maml_ray.learning.state import UpdateMetrics
from maml_ray.persistence.records import FaultCounts, IterationRecord, IterationTimings


class MakeRecord(Protocol):
    def __call__(self, iteration: int, **changes: Any) -> IterationRecord: ...


def made_up_record(
    iteration: int, *, iterations: int = 20, wall_s: float = 2.0, **changes: Any
) -> IterationRecord:
    """A record with metrics that look like a run's."""
    metrics: dict[str, Any] = {
        "version": iteration + 1,
        "return_before": 10.0 * iteration,
        "return_after": 12.0 * iteration,
        "speed_before": None,
        "speed_after": None,
        "loss": -0.01,
        "gradient_norm": 0.5,
        "gradient_snr": None if iteration % 2 else 3.0,
        "order_cosine": None if iteration % 2 else 0.75,
        "inner_kl": 0.01,
        "query_kl": 0.02,
        "clip_fraction": 0.1,
        "collector_ratio_error": 1e-6,
        "entropy": 8.0,
        "gradient_steps": 20,
        "learning_rate": 1e-3,
        "env_steps": 4000,
        "learn_s": 0.25 * wall_s,
    }
    return IterationRecord(
        iteration=iteration,
        iterations=iterations,
        update=UpdateMetrics(**{**metrics, **changes}),
        timings=IterationTimings(wall_s, 0.5 * wall_s, 0.125 * wall_s, 0.25 * wall_s),
        total_env_steps=4000 * (iteration + 1),
        elapsed_s=wall_s * (iteration + 1),
        faults=FaultCounts(2, 10, 0, 0, 10, 0, 0, 0, 0),
    )


@pytest.fixture
def record() -> MakeRecord:
    return made_up_record
