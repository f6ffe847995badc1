"""Serve a run's status and its latest parameters to other jobs on the cluster.

The actor is small: it takes no CPU, imports neither PyTorch nor MuJoCo, and holds references, not
arrays. It dies with the run.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

NAMESPACE = "maml_ray"
"""Ray namespace of all runs' status actors."""
SNAPSHOTS_KEPT = 3
"""Snapshots that the actor keeps, so that a slightly late follower still gets its version."""


@dataclass(frozen=True)
class RunStatus:
    """A run's progress.

    Attributes:
        run_directory: path of the run directory on the driver.
        learner: description of the learner's device.
        began_at: Unix time on the driver at which the run began or was resumed.
        iteration: finished iterations.
        iterations: iterations of the whole run.
        version: version of the latest parameters.
        return_before, return_after: mean returns of the last iteration; None before the first, or
            if not finite.
        steps_per_second: environment steps per second of the last iteration; None before the first.
        actors: available rollout actors.
        failures: failures of actors and learners since the run began or was resumed.
        elapsed_s: seconds of training, including those before a resume.
        checkpoint_age_s: seconds since the latest durable checkpoint; None before the first.
    """

    run_directory: str
    learner: str
    began_at: float
    iteration: int
    iterations: int
    version: int
    return_before: float | None
    return_after: float | None
    steps_per_second: float | None
    actors: int
    failures: int
    elapsed_s: float
    checkpoint_age_s: float | None


@dataclass(frozen=True)
class Snapshot:
    """Reference to one version of the parameters.

    Attributes:
        version: version of the parameters.
        parameters: one reference to :class:`maml_ray.policies.spec.PolicyParameters`, in a tuple
            because Ray would fetch a bare reference.
    """

    version: int
    parameters: tuple[ray.ObjectRef[Any]]


class StatusActor:
    """Ray actor to which a run publishes its status, and which others query.

    Args:
        name: id of the run as text.
        description: one reference to ``(Settings, PolicySpec)``, in a tuple.
    """

    def __init__(self, name: str, description: tuple[ray.ObjectRef[Any]]) -> None:
        self._name, self._description = name, description
        self._status: RunStatus | None = None
        self._published_at = time.monotonic()
        self._snapshots: deque[Snapshot] = deque(maxlen=SNAPSHOTS_KEPT)
        self._published = asyncio.Condition()

    def __repr__(self) -> str:
        return f"status of {self._name}"

    async def publish(self, status: RunStatus, snapshot: Snapshot) -> None:
        """Replace the status, and add the latest parameters."""
        async with self._published:
            self._status, self._published_at = status, time.monotonic()
            self._snapshots.append(snapshot)
            self._published.notify_all()

    async def status(self) -> tuple[RunStatus | None, float]:
        """Return the last status and its age in seconds."""
        return self._status, time.monotonic() - self._published_at

    async def description(self) -> tuple[ray.ObjectRef[Any]]:
        """Return one reference to ``(Settings, PolicySpec)``, in a tuple."""
        return self._description

    async def snapshot(
        self, newer_than: int = -1, every: int = 1, timeout_s: float = 0.0
    ) -> Snapshot | None:
        """Return the latest matching snapshot, or wait for one; None after ``timeout_s``.

        Args:
            newer_than: the version that the caller has.
            every: match only multiples of this version number.
            timeout_s: maximum wait in seconds.
        """
        async with self._published:
            if self._match(newer_than, every) is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._published.wait_for(
                            lambda: self._match(newer_than, every) is not None
                        ),
                        timeout_s,
                    )
            return self._match(newer_than, every)

    def _match(self, newer_than: int, every: int) -> Snapshot | None:
        newer = [one for one in self._snapshots if one.version > newer_than]
        return next((one for one in reversed(newer) if one.version % every == 0), None)
