"""The run's side of its service: it tells, and never waits."""

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
from maml_ray.monitoring.status_actor import NAMESPACE, RunService, RunStatus, Snapshot
from maml_ray.persistence.records import IterationRecord, StartReport
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.actor_handle import reason
from maml_ray.runtime.run_id import own_name

PATIENCE_S = 60.0
"""A service that has not answered for so long is begun anew; it starts within seconds."""
_LONGEST_PAUSE_S = 60.0


class Publisher:
    """An observer that tells the run's service of every update.

    At most one message is under way: what comes while the service is slow is overtaken by what is
    newest. A service that died or hangs is begun anew, with growing pauses.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        newest: the newest version of the parameters, and a reference to them.
        on_event: told when the service is begun anew.
        patience_s: how long an answer may take.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        newest: Callable[[], tuple[int, ray.ObjectRef[Any]]],
        on_event: Callable[[str], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._settings, self._newest = settings, newest
        self._on_event, self._patience_s = on_event, patience_s
        self._described = ray.put((settings, spec))
        self._name = own_name(settings.run.name)
        self._status: RunStatus | None = None
        self._actor: Any = None
        self._under_way: ray.ObjectRef[Any] | None = None
        self._asked_at = self._not_before = 0.0
        self._deaths = 0

    def on_start(self, report: StartReport) -> None:
        """Start the service, with the parameters that the run begins with."""
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
        self._tell()

    def on_iteration(self, record: IterationRecord) -> None:
        """Tell how the run stands, and of the new parameters."""
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
        self._tell()

    def on_event(self, message: str) -> None:
        """Of events the logs tell."""

    def close(self) -> None:
        """End the service."""
        if self._actor is not None:
            with suppress(RayError):
                ray.kill(self._actor)
            self._actor = None

    def _tell(self) -> None:
        self._look_after()
        if self._actor is None and time.monotonic() >= self._not_before:
            self._start()
        if self._actor is None or self._under_way is not None:
            return
        version, parameters = self._newest()
        snapshot = Snapshot(version, (parameters,))
        self._asked_at = time.monotonic()
        self._under_way = self._actor.tell.remote(self._status, snapshot)

    def _look_after(self) -> None:
        """Whether the last message has arrived; a service that is dead or hangs is given up."""
        if self._under_way is None:
            return
        if ray.wait([self._under_way], timeout=0)[0]:
            try:
                ray.get(self._under_way, timeout=1.0)
            except RayError as error:
                self._give_up(reason(error))
            else:
                self._deaths = 0
            self._under_way = None
        elif time.monotonic() - self._asked_at > self._patience_s:
            self._give_up(f"it has not answered for {self._patience_s:.0f} s")

    def _give_up(self, why: str) -> None:
        self._on_event(f"the run's service, for status and followers, is begun anew: {why}")
        self.close()
        self._under_way = None
        self._deaths += 1
        pause = 0.0 if self._deaths == 1 else min(2.0**self._deaths, _LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + pause

    def _start(self) -> None:
        remote: Any = ray.remote
        options = {"name": str(self._name), "namespace": NAMESPACE, "num_cpus": 0, "num_gpus": 0}
        # A killed actor gives its name back late: the next update tries again.
        with suppress(ValueError, RayError):
            made = remote(RunService).options(**options)
            self._actor = made.remote(str(self._name), (self._described,))


def _finite(value: float) -> float | None:
    """JSON has no NaN, which a skipped update may leave."""
    return value if math.isfinite(value) else None
