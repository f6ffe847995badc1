"""Fetch the parameters of a run on the cluster from another job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from maml_ray.common.errors import UserError
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.monitoring.registry import QUERY_TIMEOUT_S, get_status_actor, list_run_ids
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.runs.follow import PolicyVersion
from maml_ray.runtime.actor_handle import describe_error
from maml_ray.runtime.run_context import RunId

_REQUEST_S = 2.0
"""Maximum duration of one request for a version: bounds the delay until a stop is noticed."""
_POLL_INTERVAL_S = 0.5
UNREACHABLE_AFTER_S = 300.0
"""Give up after this time without an answer from a run whose actors are alive."""


class RunUnreachable(UserError):
    """The run is alive, but its status actor does not answer."""


class RemoteRun:
    """Supply the newest parameters of a run until the run ends.

    Args:
        run_id: the run.
        check_stop: called every few seconds while waiting; may raise to stop waiting.
    """

    def __init__(self, run_id: RunId, *, check_stop: Callable[[], None]) -> None:
        self.run_id, self._check_stop = run_id, check_stop
        self._description: tuple[Settings, PolicySpec] | None = None

    def next(self, newer_than: int, every: int) -> PolicyVersion | None:
        """Wait for a version after ``newer_than`` that is a multiple of ``every``.

        Returns:
            The newest such version; None once the run has ended.

        Raises:
            RunUnreachable: the run has not answered for ``UNREACHABLE_AFTER_S``.
        """
        last_answer, problem = time.monotonic(), "its status actor does not exist"
        while True:
            self._check_stop()
            status_actor = get_status_actor(self.run_id)
            if status_actor is None and self.run_id not in list_run_ids():
                return None
            if status_actor is not None:
                try:
                    version = self._request(status_actor, newer_than, every)
                except RayError as error:  # next, find out whether the run has ended
                    problem = describe_error(error)
                else:
                    if version is not None:
                        return version
                    last_answer = time.monotonic()
                    continue
            if time.monotonic() - last_answer > UNREACHABLE_AFTER_S:
                raise RunUnreachable(
                    f"{self.run_id} has not answered for {UNREACHABLE_AFTER_S:.0f} s: {problem}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _request(self, status_actor: Any, newer_than: int, every: int) -> PolicyVersion | None:
        if self._description is None:
            (description,) = ray.get(status_actor.description.remote(), timeout=QUERY_TIMEOUT_S)
            self._description = ray.get(description, timeout=QUERY_TIMEOUT_S)
        request = status_actor.snapshot.remote(newer_than, every, _REQUEST_S)
        snapshot = ray.get(request, timeout=_REQUEST_S + QUERY_TIMEOUT_S)
        if snapshot is None:
            return None
        parameters: PolicyParameters = ray.get(snapshot.parameters[0], timeout=QUERY_TIMEOUT_S)
        settings, spec = self._description
        agent = Agent(settings, spec, dict(parameters.values), parameters.normalizer)
        return PolicyVersion(snapshot.version, agent)
