"""Publish a run's status and parameters to its status actor, without ever waiting for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from maml_ray.config.settings import Settings
from maml_ray.monitoring.status_actor import NAMESPACE, RunStatus, Snapshot, StatusActor
from maml_ray.persistence.records import IterationRecord, Observer, StartReport
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.actor_handle import describe_error
from maml_ray.runtime.run_context import current_run_id

REPLY_TIMEOUT_S = 60.0
"""Seconds without a reply after which the status actor is restarted; a start takes seconds."""
_MAX_BACKOFF_S = 60.0


class Publisher(Observer):
    """Observer that sends every update to the run's status actor.

    At most one message is in flight: while the actor is busy, newer updates replace older ones. An
    actor that died or hangs is restarted with exponential backoff.

    Args:
        settings: of the run.
        spec: sizes of the policy.
        latest: returns the latest version of the parameters, and a reference to them.
        on_event: receives a message when the actor is restarted.
        timeout_s: seconds that a reply may take.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        latest: Callable[[], tuple[int, ray.ObjectRef[Any]]],
        on_event: Callable[[str], None],
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        self._settings, self._latest = settings, latest
        self._on_event, self._timeout_s = on_event, timeout_s
        self._description_ref = ray.put((settings, spec))
        self._run_id = current_run_id(settings.run.name)
        self._status: RunStatus | None = None
        self._actor: Any = None
        self._pending: ray.ObjectRef[Any] | None = None
        self._sent_at = self._restart_after = 0.0
        self._failures = 0

    def on_start(self, report: StartReport) -> None:
        """Start the status actor with the run's initial parameters."""
        self._status = RunStatus(
            run_directory=report.run_directory,
            learner=report.learner,
            began_at=time.time(),
            iteration=report.first_iteration,
            iterations=self._settings.run.iterations,
            version=report.first_iteration,
            return_before=None,
            return_after=None,
            steps_per_second=None,
            actors=report.rollout_actors,
            failures=0,
            elapsed_s=0.0,
            checkpoint_age_s=None,
        )
        self._publish()

    def on_iteration(self, record: IterationRecord) -> None:
        """Publish the run's progress and its new parameters."""
        assert self._status is not None
        self._status = replace(
            self._status,
            iteration=record.iteration + 1,
            version=record.update.version,
            return_before=_finite(record.update.return_before),
            return_after=_finite(record.update.return_after),
            steps_per_second=record.steps_per_second,
            actors=record.faults.actors,
            failures=record.faults.failures,
            elapsed_s=record.elapsed_s,
            checkpoint_age_s=record.checkpoint_age_s,
        )
        self._publish()

    def close(self) -> None:
        """Kill the status actor."""
        if self._actor is not None:
            with suppress(RayError):
                ray.kill(self._actor)
            self._actor = None

    def _publish(self) -> None:
        self._check_reply()
        if self._actor is None and time.monotonic() >= self._restart_after:
            self._start()
        if self._actor is None or self._pending is not None:
            return
        version, parameters = self._latest()
        snapshot = Snapshot(version, (parameters,))
        self._sent_at = time.monotonic()
        self._pending = self._actor.publish.remote(self._status, snapshot)

    def _check_reply(self) -> None:
        """Handle the reply to the last message; kill the actor if it died or hangs."""
        if self._pending is None:
            return
        if ray.wait([self._pending], timeout=0)[0]:
            try:
                ray.get(self._pending, timeout=1.0)
            except RayError as error:
                self._schedule_restart(describe_error(error))
            else:
                self._failures = 0
            self._pending = None
        elif time.monotonic() - self._sent_at > self._timeout_s:
            self._schedule_restart(f"it has not answered for {self._timeout_s:.0f} s")

    def _schedule_restart(self, reason: str) -> None:
        self._on_event(f"restarting the status actor, which serves status and followers: {reason}")
        self.close()
        self._pending = None
        self._failures += 1
        backoff = 0.0 if self._failures == 1 else min(2.0**self._failures, _MAX_BACKOFF_S)
        self._restart_after = time.monotonic() + backoff

    def _start(self) -> None:
        remote: Any = ray.remote
        options = {"name": str(self._run_id), "namespace": NAMESPACE, "num_cpus": 0, "num_gpus": 0}
        # Ray frees the name of a killed actor late: the next update tries again.
        with suppress(ValueError, RayError):
            actor = remote(StatusActor).options(**options)
            self._actor = actor.remote(str(self._run_id), (self._description_ref,))


def _finite(value: float) -> float | None:
    """Return ``value``, or None for NaN after a skipped update, which JSON cannot hold."""
    return value if math.isfinite(value) else None
