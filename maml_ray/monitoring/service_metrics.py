"""Measure the service of a policy, for ``GET /metrics`` in Prometheus's format.

:data:`METRICS` defines all of them: their registration, the table in cluster/grafana/README.md and
the test of the Grafana dashboard use it. None has the name of a policy, which is a secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.samples import Sample

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PREFIX = "maml_ray_serve_"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0, 120.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True)
class ServeMetric:
    """One metric of a service.

    Attributes:
        name: as Prometheus receives it.
        kind: a histogram also has series ``_bucket``, ``_count`` and ``_sum``.
        unit: unit of the values.
        meaning: description for the metric's users.
        labels: names of its labels.
        buckets: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = ServeMetric(
    "maml_ray_serve_requests_total",
    "counter",
    "requests",
    "answered requests; status 499: the client hung up before",
    ("route", "status"),
)
REQUEST_SECONDS = ServeMetric(
    "maml_ray_serve_request_seconds",
    "histogram",
    "s",
    "time from a request's arrival to the end of its answer",
    ("route",),
    _SECONDS,
)
OPEN_REQUESTS = ServeMetric(
    "maml_ray_serve_open_requests",
    "gauge",
    "requests",
    "requests not answered yet; of route /adapt: those in progress and those that wait",
    ("route",),
)
BATCH_SIZE = ServeMetric(
    "maml_ray_serve_batch_size",
    "histogram",
    "requests",
    "requests to act that were answered together",
    (),
    _SIZES,
)
POLICIES = ServeMetric("maml_ray_serve_policies", "gauge", "policies", "adapted policies in memory")
STORAGE_FAILING = ServeMetric(
    "maml_ray_serve_storage_failing",
    "gauge",
    "0 or 1",
    "1 if adapted policies cannot be kept in the run's storage",
)
METRICS = (REQUESTS, REQUEST_SECONDS, OPEN_REQUESTS, BATCH_SIZE, POLICIES, STORAGE_FAILING)
"""All metrics of a service, besides those of its process, ``process_...``."""


class ServiceMetrics:
    """The metrics of one process of a service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._metrics = {metric: _register(metric, self._registry) for metric in METRICS}
        # labels() takes 0.8 us, a dict 0.1.
        self._counters: dict[tuple[str, int], Counter] = {}
        self._by_route: dict[str, tuple[Gauge, Histogram]] = {}

    @property
    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def samples(self) -> list[Sample]:
        """Return all series but those of the process, which Ray measures itself."""
        return [
            sample
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name.startswith(_PREFIX) and not sample.name.endswith("_created")
        ]

    def request_started(self, route: str) -> None:
        """Count a request as open, until :meth:`request_ended`."""
        self._of_route(route)[0].inc()

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered with ``status`` after ``seconds``."""
        open_requests, duration = self._of_route(route)
        open_requests.dec()
        duration.observe(seconds)
        counter = self._counters.get((route, status))
        if counter is None:
            counter = self._metrics[REQUESTS].labels(route, str(status))
            self._counters[route, status] = counter
        counter.inc()

    def batch_answered(self, num_requests: int) -> None:
        """Count requests to act that were answered together."""
        self._metrics[BATCH_SIZE].observe(num_requests)

    def measure_store(
        self, num_policies: Callable[[], int], is_failing: Callable[[], bool]
    ) -> None:
        """Measure a store of policies whenever the metrics are read.

        Args:
            num_policies: returns the number of adapted policies in memory.
            is_failing: returns whether they cannot be kept in the run's storage.
        """
        self._metrics[POLICIES].set_function(num_policies)
        self._metrics[STORAGE_FAILING].set_function(is_failing)

    def _of_route(self, route: str) -> tuple[Gauge, Histogram]:
        found = self._by_route.get(route)
        if found is None:
            gauge, histogram = self._metrics[OPEN_REQUESTS], self._metrics[REQUEST_SECONDS]
            found = self._by_route[route] = gauge.labels(route), histogram.labels(route)
        return found


def _register(metric: ServeMetric, registry: CollectorRegistry) -> Any:
    description = f"{metric.meaning} ({metric.unit})"
    if metric.kind == "counter":
        return Counter(metric.name, description, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, description, metric.labels, registry=registry)
    return Histogram(
        metric.name, description, metric.labels, registry=registry, buckets=metric.buckets
    )
