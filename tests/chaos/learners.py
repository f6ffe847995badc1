"""Find the learner actors of the only run on a cluster by their names, and send them signals."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray

from maml_ray.runtime.actors import ActorLocation


def learners() -> set[str]:
    """Return the names of the learners, the standby included, that are starting or up."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {entry["name"] for entry in named if entry["name"].startswith("learner")}


def location_of(name: str) -> ActorLocation:
    """Wait until the learner of this name is up; return where it runs."""
    (namespace,) = (
        entry["namespace"]
        for entry in ray.util.list_named_actors(all_namespaces=True)
        if entry["name"] == name
    )
    actor: Any = ray.get_actor(name, namespace)
    location: ActorLocation = ray.get(actor.location.remote(), timeout=120)
    return location


def hit(number: signal.Signals, *names: str) -> list[int]:
    """Send a signal to learners, once all are up; return their process ids."""
    pids = [location_of(name).pid for name in names]
    for pid in pids:
        os.kill(pid, number)
    return pids
