"""A run on the cluster as a source of agents, for a program of another job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from maml_ray.common.errors import UserError
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.monitoring.registry import ANSWER_S, names_of_runs, service_of
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.runs.follow import PolicyVersion
from maml_ray.runtime.actor_handle import reason
from maml_ray.runtime.run_id import RunName

_WAIT_S = 2.0
"""Longest single wait for a version: how soon a request to stop is heard."""
_LOOK_EVERY_S = 0.5
SILENCE_S = 300.0
"""A run whose service cannot be had for so long, while its actors live, is given up."""


class RunUnreachable(UserError):
    """The run is there, and its service does not answer."""


class RemoteRun:
    """The newest parameters of a run, version after version, until the run ends.

    Args:
        name: of the run.
        check_stop: called at least every few seconds while waiting; may raise to abandon the wait.
    """

    def __init__(self, name: RunName, *, check_stop: Callable[[], None]) -> None:
        self.name, self._check_stop = name, check_stop
        self._described: tuple[Settings, PolicySpec] | None = None

    def next(self, newer_than: int, every: int) -> PolicyVersion | None:
        """The newest version that is newer and that ``every`` divides; None once the run is over.

        Raises:
            RunLost: the service has not answered for ``SILENCE_S``.
        """
        heard, problem = time.monotonic(), "it is not there"
        while True:
            self._check_stop()
            service = service_of(self.name)
            if service is None and self.name not in names_of_runs():
                return None
            if service is not None:
                try:
                    found = self._ask(service, newer_than, every)
                except RayError as error:  # it died, or the run has: the next round tells
                    problem = reason(error)
                else:
                    if found is not None:
                        return found
                    heard = time.monotonic()
                    continue
            if time.monotonic() - heard > SILENCE_S:
                raise RunUnreachable(
                    f"{self.name} has not answered for {SILENCE_S:.0f} s: {problem}"
                )
            time.sleep(_LOOK_EVERY_S)

    def _ask(self, service: Any, newer_than: int, every: int) -> PolicyVersion | None:
        if self._described is None:
            (described,) = ray.get(service.described.remote(), timeout=ANSWER_S)
            self._described = ray.get(described, timeout=ANSWER_S)
        asked = service.snapshot.remote(newer_than, every, _WAIT_S)
        snapshot = ray.get(asked, timeout=_WAIT_S + ANSWER_S)
        if snapshot is None:
            return None
        fetched: PolicyParameters = ray.get(snapshot.parameters[0], timeout=ANSWER_S)
        settings, spec = self._described
        agent = Agent(settings, spec, dict(fetched.values), fetched.normalizer)
        return PolicyVersion(snapshot.version, agent)
