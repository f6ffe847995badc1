"""A run's figures as metrics of Ray, which every node exports to Prometheus.

:data:`METRICS` is the one table of them: registration, the README and the check of the Grafana
dashboard are made from it. Ray puts ``ray_`` before each name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from maml_ray.persistence.records import IterationRecord, StartReport
from maml_ray.runtime.run_id import own_name

Kind = Literal["gauge", "counter"]
TAGS = ("run", "job_id")
"""Of every metric: ``run.name``, and Ray's job id, which tells two runs of a name apart (``job`` is
Prometheus' own)."""
_NOTHING = sys.float_info.min
"""What a counter begins with. It must be there before anything is counted, or ``increase()`` misses
the first time; Ray's takes no 0; and 1 plus this is 1."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without Ray's prefix.
        kind: a gauge tells the last iteration's value, a counter adds up.
        unit: of its values.
        meaning: in words.
        read: its value in a record; where the metric has a tag of its own, one for each of its
            values. None where there is none.
        tag: that tag.
        total: of a counter, whether the record tells the sum so far; what is new otherwise.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    read: Callable[[IterationRecord], Any]
    tag: str | None = None
    total: bool = False

    def values(self, record: IterationRecord) -> dict[str, float]:
        """Finite values by the metric's own tag; by ``""`` where it has none."""
        told = self.read(record)
        by_tag: Mapping[str, Any] = told if self.tag else {"": told}
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


def _counter(name: str, unit: str, meaning: str, path: str, *, total: bool = False) -> Metric:
    return Metric(f"maml_ray_{name}_total", "counter", unit, meaning, attrgetter(path), total=total)


METRICS = (
    _gauge("return_before", "reward", "mean return before adaptation", "update.return_before"),
    _gauge("return_after", "reward", "mean return after adaptation", "update.return_after"),
    _gauge("speed_before", "m/s", "mean speed before adaptation", "update.speed_before"),
    _gauge("speed_after", "m/s", "mean speed after adaptation", "update.speed_after"),
    _gauge("meta_loss", "1", "meta-loss", "update.loss"),
    _gauge("gradient_norm", "1", "Euclidean norm of the meta-gradient", "update.gradient_norm"),
    _gauge("inner_kl", "nats", "KL of today's policies from the support data's", "update.inner_kl"),
    _gauge("query_kl", "nats", "KL of the adapted policies from the query's", "update.query_kl"),
    _gauge("staleness", "updates", "versions that the data are behind", "update.staleness"),
    _gauge("entropy", "nats", "entropy of the adapted policies", "update.entropy"),
    _counter("env_steps", "steps", "environment steps of the run", "total_env_steps", total=True),
    _gauge("env_steps_per_second", "steps/s", "of the last iteration", "steps_per_second"),
    Metric(
        "maml_ray_phase_seconds_total",
        "counter",
        "s",
        "wall time by phase: collect, adapt, learn, rest",
        _phases,
        tag="phase",
    ),
    _gauge("actors", "actors", "rollout actors there are", "faults.actors"),
    _counter(
        "failures",
        "failures",
        "actors, learners, starts that failed",
        "faults.failures",
        total=True,
    ),
    _counter(
        "learner_restarts", "restarts", "learners begun anew", "faults.learner_restarts", total=True
    ),
    _counter("work_retried", "tasks", "handed out again after a failure", "faults.retried"),
    _counter("work_duplicated", "tasks", "handed to a second actor", "faults.duplicated"),
    _counter("work_discarded", "tasks", "answered second, or too late", "faults.discarded"),
    _counter("work_lost", "tasks", "never answered", "faults.lost"),
    _counter(
        "discarded_episodes",
        "episodes",
        "broken simulations, each redrawn",
        "update.discarded_episodes",
        total=True,
    ),
    Metric(
        "maml_ray_skipped_updates_total",
        "counter",
        "updates",
        "skipped for want of finite numbers",
        lambda record: int(record.update.skipped is not None),
    ),
    _gauge(
        "checkpoint_age", "s", "since the newest safe checkpoint was written", "checkpoint_age_s"
    ),
    _gauge("parameter_version", "updates", "version of the parameters", "update.version"),
    Metric(
        "maml_ray_iterations_finished",
        "gauge",
        "iterations",
        "of the run, resumed parts included",
        lambda record: record.iteration + 1,
    ),
    _gauge("iterations_planned", "iterations", "that the run is to have", "iterations"),
)
"""All of them."""


class RayMetrics:
    """An observer that publishes :data:`METRICS`; made while Ray is connected.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        name = own_name(run)
        self._tags = {"run": name.run, "job_id": name.job}
        self._published = [_Published(metric, self._tags) for metric in METRICS]

    def on_start(self, report: StartReport) -> None:
        """Nothing is known yet."""

    def on_iteration(self, record: IterationRecord) -> None:
        """The last iteration's figures; Ray exports them every ten seconds, and at its end."""
        for one in self._published:
            one.tell(record)

    def on_event(self, message: str) -> None:
        """Of events the logs tell."""

    def close(self) -> None:
        """Nothing is held."""


class _Published:
    """A metric in Ray's hands."""

    def __init__(self, metric: Metric, tags: dict[str, str]) -> None:
        self._metric, self._tags = metric, tags
        keys = (*TAGS, metric.tag) if metric.tag else TAGS
        described = f"{metric.meaning} ({metric.unit})"
        self._gauge = self._counter = None
        if metric.kind == "gauge":
            self._gauge = Gauge(metric.name, description=described, tag_keys=keys)
        else:
            self._counter = Counter(metric.name, description=described, tag_keys=keys)
        self._so_far: dict[str, float] = {}

    def tell(self, record: IterationRecord) -> None:
        """Set the gauge, or add what is new to the counter."""
        for tag, value in self._metric.values(record).items():
            tags = {**self._tags, self._metric.tag: tag} if self._metric.tag else self._tags
            if self._gauge is not None:
                self._gauge.set(value, tags=tags)
            if self._counter is not None:
                new = value - self._so_far.get(tag, 0.0) if self._metric.total else value
                if new > 0.0 or tag not in self._so_far:
                    self._counter.inc(max(new, _NOTHING), tags=tags)
                self._so_far[tag] = value
