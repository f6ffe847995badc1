"""A run as a service on its cluster: how it stands, and the newest parameters, for other jobs.

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
"""Ray namespace of the services of all runs."""
KEPT = 3
"""Snapshots that a service keeps: who comes a little late still gets the version it waits for."""


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes:
        run_directory: its folder, as the driver names it.
        learner: where the learner computes, in words.
        began_at: when this part of the run began, Unix time on the driver.
        iteration: finished iterations.
        iterations: how many there are to be.
        version: of the newest parameters.
        return_before, return_after: of the last iteration; None before the first, and where it had
            none that is finite.
        steps_per_second: likewise.
        actors: rollout actors there are.
        failures: of actors and learners, since this part began.
        elapsed_s: seconds of training, resumed parts included.
        checkpoint_age_s: seconds since the newest safe checkpoint, at that time; None before one.
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
    """One version of the parameters, by reference.

    Attributes:
        version: of the parameters.
        parameters: one reference to :class:`maml_ray.policies.spec.PolicyParameters`; in a
            container, for Ray would fetch what stands alone.
    """

    version: int
    parameters: tuple[ray.ObjectRef[Any]]


class RunService:
    """The actor: told by the run, asked by others.

    Args:
        name: of the run.
        described: one reference to the run's settings and its policy's sizes.
    """

    def __init__(self, name: str, described: tuple[ray.ObjectRef[Any]]) -> None:
        self._name, self._described = name, described
        self._status: RunStatus | None = None
        self._told_at = time.monotonic()
        self._kept: deque[Snapshot] = deque(maxlen=KEPT)
        self._news = asyncio.Condition()

    def __repr__(self) -> str:
        return f"service of {self._name}"

    async def tell(self, status: RunStatus, snapshot: Snapshot) -> None:
        """How the run stands now, and its newest parameters."""
        async with self._news:
            self._status, self._told_at = status, time.monotonic()
            self._kept.append(snapshot)
            self._news.notify_all()

    async def status(self) -> tuple[RunStatus | None, float]:
        """What was told last, and how many seconds ago."""
        return self._status, time.monotonic() - self._told_at

    async def described(self) -> tuple[ray.ObjectRef[Any]]:
        """One reference to ``(Settings, PolicySpec)``."""
        return self._described

    async def snapshot(
        self, newer_than: int = -1, every: int = 1, timeout_s: float = 0.0
    ) -> Snapshot | None:
        """The newest snapshot that suits the caller, once there is one; None if not in time.

        Args:
            newer_than: the version that the caller has.
            every: only versions that it divides.
            timeout_s: how long to wait.
        """
        async with self._news:
            if self._choice(newer_than, every) is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._news.wait_for(lambda: self._choice(newer_than, every) is not None),
                        timeout_s,
                    )
            return self._choice(newer_than, every)

    def _choice(self, newer_than: int, every: int) -> Snapshot | None:
        suiting = [one for one in self._kept if one.version > newer_than]
        return next((one for one in reversed(suiting) if one.version % every == 0), None)
