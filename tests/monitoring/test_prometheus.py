"""What Ray is told of a run's figures; tests/test_watching.py reads them from Prometheus."""

from __future__ import annotations

import math
from collections import Counter as Sums
from typing import Any

import pytest

from maml_ray.monitoring import prometheus
from maml_ray.monitoring.prometheus import METRICS, RayMetrics
from maml_ray.runtime.run_context import RunId
from tests.reporting.conftest import MakeRecord, record  # noqa: F401  (a fixture)


class Told:
    """In place of Ray's metrics: the last values of gauges, and the sums of counters."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}
        self.sums: Sums[tuple[str, str]] = Sums()

    def kind(self, counts: bool) -> Any:
        told = self

        class Metric:
            def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
                self.name, self.keys = name, tag_keys

            def _place(self, value: float, tags: dict[str, str]) -> tuple[str, str]:
                assert type(value) is float  # Ray takes NumPy's for none
                assert set(tags) == set(self.keys)
                assert (tags["run"], tags["job_id"]) == ("told", "03000000")
                return self.name.removeprefix("maml_ray_"), tags.get("phase", "")

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert not counts
                told.values[self._place(value, tags)] = value

            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert counts
                assert value > 0.0  # Ray refuses 0
                told.sums[self._place(value, tags)] += value  # type: ignore[assignment]

        return Metric


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(prometheus, "Gauge", told.kind(counts=False))
    monkeypatch.setattr(prometheus, "Counter", told.kind(counts=True))
    monkeypatch.setattr(prometheus, "current_run_id", lambda run: RunId(run, "03000000"))
    return told


def test_gauges_tell_the_last_iteration_and_counters_add_up(
    told: Told,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("told")
    for iteration in range(4, 7):  # of a resumed run
        discarded = {4: 2, 5: 2, 6: 5}[iteration]
        metrics.on_iteration(record(iteration, discarded_episodes=discarded, speed_after=1.5))
    assert told.values["return_after", ""] == 72.0
    assert told.values["iterations_finished", ""] == 7.0
    assert told.values["speed_after", ""] == 1.5
    assert ("speed_before", "") not in told.values
    assert told.sums["env_steps_total", ""] == 28_000.0  # those before it was resumed, too
    assert told.sums["discarded_episodes_total", ""] == 5.0
    phases = {phase: told.sums["phase_seconds_total", phase] for phase in ("collect", "learn")}
    assert phases == {"collect": 3.0, "learn": 1.5}


def test_a_counter_is_there_before_anything_is_counted(
    told: Told,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("told")
    metrics.on_iteration(record(0))
    assert 0.0 < told.sums["failures_total", ""] < 1e-300
    metrics.on_iteration(record(1, skipped="no number"))
    assert told.sums["skipped_updates_total", ""] == 1.0


def test_what_could_not_be_computed_stays_as_it_was(
    told: Told,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("told")
    metrics.on_iteration(record(0, loss=-0.5))
    metrics.on_iteration(record(1, loss=math.nan, return_after=math.inf))
    assert told.values["meta_loss", ""] == -0.5
    assert told.values["return_after", ""] == 0.0
    assert told.values["return_before", ""] == 10.0


def test_names_are_told_apart() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
