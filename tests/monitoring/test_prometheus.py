"""The metrics that Ray receives; tests/cli/test_watch.py reads them from Prometheus."""

from __future__ import annotations

import math
from collections import Counter as Sums
from typing import Any

import pytest

from maml_ray.monitoring import prometheus
from maml_ray.monitoring.prometheus import METRICS, RayMetrics
from maml_ray.runtime.run_context import RunId
from tests.reporting.conftest import MakeRecord, record  # noqa: F401  (a fixture)


class FakeMetrics:
    """Replace Ray's metrics; hold the last values of gauges and the sums of counters."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}
        self.sums: Sums[tuple[str, str]] = Sums()

    def kind(self, counts: bool) -> Any:
        exported = self

        class Metric:
            def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
                self.name, self.keys = name, tag_keys

            def _key(self, value: float, tags: dict[str, str]) -> tuple[str, str]:
                assert type(value) is float  # Ray takes NumPy's for none
                assert set(tags) == set(self.keys)
                assert (tags["run"], tags["job_id"]) == ("example", "03000000")
                return self.name.removeprefix("maml_ray_"), tags.get("phase", "")

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert not counts
                exported.values[self._key(value, tags)] = value

            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert counts
                assert value > 0.0  # Ray refuses 0
                exported.sums[self._key(value, tags)] += value  # type: ignore[assignment]

        return Metric


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> FakeMetrics:
    exported = FakeMetrics()
    monkeypatch.setattr(prometheus, "Gauge", exported.kind(counts=False))
    monkeypatch.setattr(prometheus, "Counter", exported.kind(counts=True))
    monkeypatch.setattr(prometheus, "current_run_id", lambda run: RunId(run, "03000000"))
    return exported


def test_gauges_hold_the_last_value_and_counters_add_up(
    exported: FakeMetrics,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("example")
    for iteration in range(4, 7):  # of a resumed run
        discarded = {4: 2, 5: 2, 6: 5}[iteration]
        metrics.on_iteration(record(iteration, discarded_episodes=discarded, speed_after=1.5))
    assert exported.values["return_after", ""] == 72.0
    assert exported.values["iterations_finished", ""] == 7.0
    assert exported.values["speed_after", ""] == 1.5
    assert ("speed_before", "") not in exported.values
    assert exported.sums["env_steps_total", ""] == 28_000.0  # those before it was resumed, too
    assert exported.sums["discarded_episodes_total", ""] == 5.0
    phases = {phase: exported.sums["phase_seconds_total", phase] for phase in ("collect", "learn")}
    assert phases == {"collect": 3.0, "learn": 1.5}


def test_a_counter_exists_before_anything_is_counted(
    exported: FakeMetrics,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("example")
    metrics.on_iteration(record(0))
    assert 0.0 < exported.sums["failures_total", ""] < 1e-300
    metrics.on_iteration(record(1, skipped="no number"))
    assert exported.sums["skipped_updates_total", ""] == 1.0


def test_non_finite_values_are_not_published(
    exported: FakeMetrics,
    record: MakeRecord,  # noqa: F811
) -> None:
    metrics = RayMetrics("example")
    metrics.on_iteration(record(0, loss=-0.5))
    metrics.on_iteration(record(1, loss=math.nan, return_after=math.inf))
    assert exported.values["meta_loss", ""] == -0.5
    assert exported.values["return_after", ""] == 0.0
    assert exported.values["return_before", ""] == 10.0


def test_metric_names_are_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
