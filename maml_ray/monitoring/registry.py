"""List the runs on a cluster and their status, as their status actors report it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from maml_ray.common.errors import UserError
from maml_ray.monitoring.status_actor import NAMESPACE, RunStatus
from maml_ray.runtime.actor_handle import describe_error
from maml_ray.runtime.connection.connect import connected
from maml_ray.runtime.connection.session import RaySession
from maml_ray.runtime.run_context import RunId

QUERY_TIMEOUT_S = 5.0
"""Deadline in seconds for the replies of all status actors together."""


@dataclass(frozen=True)
class RunEntry:
    """A run on the cluster.

    Attributes:
        run_id: its name and Ray job.
        status: its last status; None if unknown.
        status_age_s: age of the status in seconds.
        problem: why the status is unknown.
    """

    run_id: RunId
    status: RunStatus | None
    status_age_s: float = 0.0
    problem: str | None = None


class RunNotFound(UserError):
    """No run of that name is on the cluster, or there are several."""


@contextmanager
def joined(address: str | None) -> Iterator[RaySession]:
    """Connect to a running cluster inside the block.

    Args:
        address: address of the cluster; None for a submitted job's own, otherwise this machine's.

    Raises:
        ResourceError: there is no such cluster.
    """
    with connected(address or "auto", "--address") as session:
        yield session


def list_run_ids() -> list[RunId]:
    """Return the runs that have an actor on the cluster, whether or not they report a status."""
    return sorted(set(_run_ids(ray.util.list_named_actors(all_namespaces=True))))


def _run_ids(actors: Iterable[Mapping[str, str]]) -> Iterable[RunId]:
    for actor in actors:
        namespace, prefix = actor["namespace"], f"{NAMESPACE}/"
        if namespace == NAMESPACE or namespace.startswith(prefix):
            text = actor["name"] if namespace == NAMESPACE else namespace.removeprefix(prefix)
            run_id = RunId.parse(text)
            if run_id is not None:
                yield run_id


def list_runs() -> list[RunEntry]:
    """Return every run on the cluster with its status, within ``QUERY_TIMEOUT_S``."""
    replies: dict[RunId, ray.ObjectRef[Any] | None] = {}
    for run_id in list_run_ids():
        actor = get_status_actor(run_id)
        replies[run_id] = None if actor is None else actor.status.remote()
    pending = [ref for ref in replies.values() if ref is not None]
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=QUERY_TIMEOUT_S)
    return [_entry(run_id, ref) for run_id, ref in replies.items()]


def _entry(run_id: RunId, reply: ray.ObjectRef[Any] | None) -> RunEntry:
    if reply is None:
        return RunEntry(run_id, None, problem="starting, or its status actor is down")
    try:
        status, age_s = ray.get(reply, timeout=0)
    except GetTimeoutError:
        return RunEntry(run_id, None, problem=f"no answer within {QUERY_TIMEOUT_S:.0f} s")
    except RayError as error:
        return RunEntry(run_id, None, problem=describe_error(error))
    return RunEntry(run_id, status, age_s, None if status else "starting")


def find_run(name: str) -> RunId:
    """Return the run called ``name``, in the form ``NAME`` or ``NAME/JOB``.

    Raises:
        RunNotFound: there is no such run, or there are several.
    """
    run_ids = list_run_ids()
    matches = [run_id for run_id in run_ids if name in (run_id.run, str(run_id))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RunNotFound(f"several runs are called {name}: name one of {_join(matches)}")
    others = f"there are {_join(run_ids)}" if run_ids else "no run trains there now"
    raise RunNotFound(f"no run called {name} is on the cluster: {others} (maml-ray status)")


def _join(run_ids: Iterable[RunId]) -> str:
    return ", ".join(map(str, run_ids))


def get_status_actor(run_id: RunId) -> Any:
    """Return Ray's handle of a run's status actor; None if there is none."""
    try:
        return ray.get_actor(str(run_id), namespace=NAMESPACE)
    except ValueError:
        return None
