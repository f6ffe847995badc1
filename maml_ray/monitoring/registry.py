"""Who trains on a cluster: the runs, by their services, asked under a deadline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from maml_ray.common.errors import UserError
from maml_ray.monitoring.status_actor import NAMESPACE, RunStatus
from maml_ray.runtime.actor_handle import reason
from maml_ray.runtime.ray_session import connected
from maml_ray.runtime.run_id import RunName

ANSWER_S = 5.0
"""Deadline for all the services' answers together."""


@dataclass(frozen=True)
class RunSeen:
    """A run that is on the cluster.

    Attributes:
        name: of the run.
        status: how it stands; None where it does not tell.
        told_s_ago: how old that is.
        problem: why it does not tell.
    """

    name: RunName
    status: RunStatus | None
    told_s_ago: float = 0.0
    problem: str | None = None


class NoSuchRun(UserError):
    """No run of that name is on the cluster, or several are."""


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """A cluster that is there already, for the time of the block.

    Args:
        address: of it; None for a submitted job's own, else for the one on this machine.

    Raises:
        ResourceError: there is none.
    """
    if address is None and not os.environ.get("RAY_ADDRESS"):
        address = "auto"
    with connected(address):
        yield


def names_of_runs() -> list[RunName]:
    """The runs that have an actor on the cluster, whether their services answer or not."""
    return sorted(set(_runs(ray.util.list_named_actors(all_namespaces=True))))


def _runs(actors: Iterable[Mapping[str, str]]) -> Iterable[RunName]:
    for actor in actors:
        space, prefix = actor["namespace"], f"{NAMESPACE}/"
        told = actor["name"] if space == NAMESPACE else space.removeprefix(prefix)
        if space == NAMESPACE or space.startswith(prefix):
            name = RunName.parse(told)
            if name is not None:
                yield name


def look_at_runs() -> list[RunSeen]:
    """Every run on the cluster, asked how it stands, within ``ANSWER_S``."""
    names = names_of_runs()
    asked: dict[RunName, ray.ObjectRef[Any] | None] = {}
    for name in names:
        service = service_of(name)
        asked[name] = None if service is None else service.status.remote()
    waiting = [ref for ref in asked.values() if ref is not None]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=ANSWER_S)
    return [_seen(name, ref) for name, ref in asked.items()]


def _seen(name: RunName, answer: ray.ObjectRef[Any] | None) -> RunSeen:
    if answer is None:
        return RunSeen(name, None, problem="starting, or its service is away")
    try:
        status, ago = ray.get(answer, timeout=0)
    except GetTimeoutError:
        return RunSeen(name, None, problem=f"no answer within {ANSWER_S:.0f} s")
    except RayError as error:
        return RunSeen(name, None, problem=reason(error))
    return RunSeen(name, status, ago, None if status else "starting")


def find_run(asked: str) -> RunName:
    """The run of a name, ``NAME`` or ``NAME/JOB``.

    Raises:
        NoSuchRun: there is none, or there are several.
    """
    there = names_of_runs()
    found = [name for name in there if asked in (name.run, str(name))]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchRun(f"several runs are called {asked}: name one of {_listed(found)}")
    others = f"there are {_listed(there)}" if there else "no run trains there now"
    raise NoSuchRun(f"no run called {asked} is on the cluster: {others} (maml-ray status)")


def _listed(names: Iterable[RunName]) -> str:
    return ", ".join(map(str, names))


def service_of(name: RunName) -> Any:
    """The handle of a run's service; None where there is none."""
    try:
        return ray.get_actor(str(name), namespace=NAMESPACE)
    except ValueError:
        return None
