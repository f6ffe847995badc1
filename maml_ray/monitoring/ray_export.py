"""Copy the metrics of a process to Ray, which exports them on every node with its own.

For processes that Ray Serve started: a request for ``/metrics`` reaches any one of them, while Ray
exports all, each with a label ``WorkerId``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.samples import Sample
from ray.util.metrics import Gauge

EXPORT_EVERY_S = 10.0
"""As often as Ray exports."""


class RayExporter:
    """Copy samples to Ray.

    Counters become gauges too: Ray's counters take increases, and what was counted is a total.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}

    def export(self, samples: Iterable[Sample]) -> None:
        """Copy the samples; those of one name must have the same labels."""
        for sample in samples:
            gauge = self._gauges.get(sample.name)
            if gauge is None:
                description = "of the service of a policy, see cluster/grafana/README.md"
                gauge = Gauge(sample.name, description=description, tag_keys=tuple(sample.labels))
                self._gauges[sample.name] = gauge
            gauge.set(sample.value, tags=sample.labels)


def export_in_background(read: Callable[[], Iterable[Sample]]) -> None:
    """Copy what ``read`` returns every :data:`EXPORT_EVERY_S` seconds, until the process ends."""

    def run() -> None:
        exporter, never = RayExporter(), threading.Event()
        while True:
            exporter.export(read())
            never.wait(EXPORT_EVERY_S)

    threading.Thread(target=run, name="metrics-to-ray", daemon=True).start()
