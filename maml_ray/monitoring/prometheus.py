"""Publish a run's metrics through Ray, which exports them on every node to Prometheus.

:data:`METRICS` defines all of them: their registration, the table in cluster/grafana/README.md and
the test of the Grafana dashboard use it. Ray prefixes each name with ``ray_``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from maml_ray.persistence.records import IterationRecord, Observer
from maml_ray.runtime.run_context import current_run_id

Kind = Literal["gauge", "counter"]
TAGS = ("run", "job_id")
"""Tags of every metric: ``run.name``, and Ray's job id, which distinguishes runs of the same name
(``job`` is reserved by Prometheus)."""
_COUNTER_START = sys.float_info.min
"""First value of a counter, standing for 0, which Ray's counters reject. Without a first value
``increase()`` misses the first count. Adding it to 1 gives 1."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without Ray's prefix.
        kind: a gauge holds the last iteration's value, a counter accumulates.
        unit: unit of the values.
        meaning: description for the metric's users.
        read: returns the value in a record, or None if there is none; with ``tag`` a mapping from
            the tag's values to such values.
        tag: name of the metric's own tag, if any.
        is_total: for a counter, whether ``read`` returns the total so far instead of the increase.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    read: Callable[[IterationRecord], Any]
    tag: str | None = None
    is_total: bool = False

    def values(self, record: IterationRecord) -> dict[str, float]:
        """Return the finite values by the metric's own tag, or by ``""`` if it has none."""
        value_or_values = self.read(record)
        by_tag: Mapping[str, Any] = value_or_values if self.tag else {"": value_or_values}
        return {
            tag: float(value)
            for tag, value in by_tag.items()
            if value is not None and math.isfinite(value)
        }


def _phases(record: IterationRecord) -> dict[str, float]:
    times = record.timings
    return {
        "collect": times.collect_s,
        "adapt": times.adapt_s,
        "learn": times.learn_s,
        "rest": times.rest_s,
    }


def _gauge(name: str, unit: str, meaning: str, path: str) -> Metric:
    return Metric(f"maml_ray_{name}", "gauge", unit, meaning, attrgetter(path))


def _counter(name: str, unit: str, meaning: str, path: str, *, is_total: bool = False) -> Metric:
    return Metric(
        f"maml_ray_{name}_total", "counter", unit, meaning, attrgetter(path), is_total=is_total
    )


METRICS = (
    _gauge("return_before", "reward", "mean return before adaptation", "update.return_before"),
    _gauge("return_after", "reward", "mean return after adaptation", "update.return_after"),
    _gauge("speed_before", "m/s", "mean speed before adaptation", "update.speed_before"),
    _gauge("speed_after", "m/s", "mean speed after adaptation", "update.speed_after"),
    _gauge("meta_loss", "1", "meta-loss", "update.loss"),
    _gauge("gradient_norm", "1", "Euclidean norm of the meta-gradient", "update.gradient_norm"),
    _gauge("inner_kl", "nats", "KL on support data, old to new policy", "update.inner_kl"),
    _gauge("query_kl", "nats", "KL on query data, old to new policies", "update.query_kl"),
    _gauge("staleness", "updates", "age of the data in versions", "update.staleness"),
    _gauge("entropy", "nats", "entropy of the adapted policies", "update.entropy"),
    _counter("env_steps", "steps", "environment steps", "total_env_steps", is_total=True),
    _gauge("env_steps_per_second", "steps/s", "rate of the last iteration", "steps_per_second"),
    Metric(
        "maml_ray_phase_seconds_total",
        "counter",
        "s",
        "wall time by phase: collect, adapt, learn, rest",
        _phases,
        tag="phase",
    ),
    _gauge("actors", "actors", "available rollout actors", "faults.actors"),
    _counter(
        "failures",
        "failures",
        "failures of actors, learners and starts",
        "faults.failures",
        is_total=True,
    ),
    _counter(
        "learner_restarts", "restarts", "learner restarts", "faults.learner_restarts", is_total=True
    ),
    _counter("work_retried", "tasks", "tasks repeated after a failure", "faults.retried"),
    _counter("work_duplicated", "tasks", "tasks given to a second actor", "faults.duplicated"),
    _counter("work_discarded", "tasks", "second or late results", "faults.discarded"),
    _counter("work_lost", "tasks", "tasks lost with their actor", "faults.lost"),
    _counter(
        "discarded_episodes",
        "episodes",
        "failed simulations, each collected again",
        "update.discarded_episodes",
        is_total=True,
    ),
    Metric(
        "maml_ray_skipped_updates_total",
        "counter",
        "updates",
        "updates skipped because of non-finite numbers",
        lambda record: int(record.update.skipped is not None),
    ),
    _gauge("checkpoint_age", "s", "time since the latest checkpoint", "checkpoint_age_s"),
    _gauge("parameter_version", "updates", "version of the parameters", "update.version"),
    Metric(
        "maml_ray_iterations_finished",
        "gauge",
        "iterations",
        "finished iterations, including those before a resume",
        lambda record: record.iteration + 1,
    ),
    _gauge("iterations_planned", "iterations", "iterations of the whole run", "iterations"),
)
"""All metrics of a run."""


class RayMetrics(Observer):
    """Observer that publishes :data:`METRICS`; create it while Ray is connected.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        run_id = current_run_id(run)
        tags = {"run": run_id.run, "job_id": run_id.job}
        self._exporters = [_MetricExporter(metric, tags) for metric in METRICS]

    def on_iteration(self, record: IterationRecord) -> None:
        """Publish an iteration's values; Ray exports them every ten seconds, and at its end."""
        for exporter in self._exporters:
            exporter.export(record)


class _MetricExporter:
    """Write one metric to Ray."""

    def __init__(self, metric: Metric, tags: dict[str, str]) -> None:
        self._metric, self._tags = metric, tags
        keys = (*TAGS, metric.tag) if metric.tag else TAGS
        description = f"{metric.meaning} ({metric.unit})"
        self._gauge = self._counter = None
        if metric.kind == "gauge":
            self._gauge = Gauge(metric.name, description=description, tag_keys=keys)
        else:
            self._counter = Counter(metric.name, description=description, tag_keys=keys)
        self._last_values: dict[str, float] = {}

    def export(self, record: IterationRecord) -> None:
        """Set the gauge, or increase the counter."""
        for tag, value in self._metric.values(record).items():
            tags = {**self._tags, self._metric.tag: tag} if self._metric.tag else self._tags
            if self._gauge is not None:
                self._gauge.set(value, tags=tags)
            if self._counter is not None:
                last = self._last_values.get(tag, 0.0)
                increase = value - last if self._metric.is_total else value
                if increase > 0.0 or tag not in self._last_values:
                    self._counter.inc(max(increase, _COUNTER_START), tags=tags)
                self._last_values[tag] = value
