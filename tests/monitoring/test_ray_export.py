"""What Prometheus's client has counted in a process reaches Ray as it is."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from maml_ray.monitoring import ray_export
from maml_ray.monitoring.ray_export import RayExporter


class FakeGauge:
    """Replace Ray's gauge; hold the values of all by name and labels."""

    values: ClassVar[dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    made: ClassVar[list[str]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, tag_keys
        self.made.append(name)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.keys)  # Ray refuses others
        self.values[self.name, tuple(sorted(tags.items()))] = value


def test_counters_and_histograms_are_copied_with_their_labels_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_export, "Gauge", FakeGauge)
    registry = CollectorRegistry()
    requests = Counter("requests", "of a test", ["route"], registry=registry)
    sizes = Histogram("size", "of a test", registry=registry, buckets=(1.0, 2.0))
    exporter = RayExporter()

    def export() -> None:
        exporter.export(sample for family in registry.collect() for sample in family.samples)

    requests.labels("/act").inc(2)
    sizes.observe(1.5)
    export()
    requests.labels("/act").inc()
    requests.labels("/adapt").inc()
    sizes.observe(5.0)
    export()
    expected: dict[tuple[str, Any], float] = {
        ("requests_total", (("route", "/act"),)): 3.0,
        ("requests_total", (("route", "/adapt"),)): 1.0,
        ("size_bucket", (("le", "1.0"),)): 0.0,
        ("size_bucket", (("le", "2.0"),)): 1.0,
        ("size_bucket", (("le", "+Inf"),)): 2.0,
        ("size_count", ()): 2.0,
        ("size_sum", ()): 6.5,
    }
    found = {key: value for key, value in FakeGauge.values.items() if "created" not in key[0]}
    assert found == expected
    assert len(set(FakeGauge.made)) == len(FakeGauge.made), "Ray has each name once in a process"
