"""How many rollout actors a cluster has room for, as it grows and shrinks, and who is to leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ray

from maml_ray.config.settings import ClusterSettings
from maml_ray.runtime.ray_internals import get_draining_nodes

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the cluster: a look is a call to its head."""

Nodes = Sequence[Mapping[str, Any]]


def wanted_actors(settings: ClusterSettings, nodes: Nodes, leaving: Collection[str] = ()) -> int:
    """One actor a CPU of the living nodes that stay, and no more than the settings allow."""
    cpus = sum(
        int(node.get("Resources", {}).get("CPU", 0))
        for node in nodes
        if node.get("Alive", False) and node["NodeID"] not in leaving
    )
    return cpus if settings.rollout_actors is None else min(cpus, settings.rollout_actors)


class Capacity:
    """The cluster's nodes, looked at every so often.

    Args:
        settings: least and most actors.
        nodes: tells the cluster's nodes, as ``ray.nodes()``.
        draining: tells the ids of those that were announced to go away and are still there.
        demanded: how many actors an autoscaler is asked for; 0 without one.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        nodes: Callable[[], Nodes] = ray.nodes,
        draining: Callable[[], Collection[str]] = get_draining_nodes,
        *,
        demanded: int = 0,
    ) -> None:
        self._settings = settings
        self._demanded = demanded
        self._nodes = nodes
        self._draining = draining
        self._looked = float("-inf")
        self._room = 0
        self._announced: set[str] = set()

    def wanted(self) -> int:
        """How many actors there should be: those that there is room for, or is to be."""
        return max(self.room(), self._demanded)

    def room(self) -> int:
        """How many actors there is room for, from a look that is at most two seconds old."""
        self.look()
        return self._room

    def announced(self, node_id: str | None) -> bool:
        """Whether a node was announced to go away; also when it has gone since."""
        return node_id in self._announced

    @property
    def any_announced(self) -> bool:
        """Whether any node was; mostly none, and then there is nobody to ask about."""
        return bool(self._announced)

    def living(self) -> frozenset[str]:
        """Ids of the nodes that are there now."""
        return frozenset(node["NodeID"] for node in self._nodes() if node.get("Alive", False))

    def look(self) -> None:
        """Look at the cluster, unless that was done within the last two seconds."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._announced.update(self._draining())  # of a node that has gone Ray says so no more
        self._room = wanted_actors(self._settings, self._nodes(), self._announced)
        self._looked = now

    def look_again(self) -> None:
        """What was seen is out of date: somebody has died."""
        self._looked = float("-inf")


def demanded_actors(settings: ClusterSettings, tasks: int) -> int:
    """How many actors to keep waiting: an autoscaler adds nodes for those, and for nothing else.

    Args:
        settings: least and most actors, and whether there is an autoscaler.
        tasks: of a meta-batch: more actors than those would idle.
    """
    if not settings.autoscaler:
        return 0
    return settings.rollout_actors or max(tasks, settings.min_rollout_actors)


def describe_free() -> str:
    """What the cluster has, and how much of it is free, for people."""
    there, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node.get("Alive", False))
    told = f"free are {free.get('CPU', 0):.0f} of {there.get('CPU', 0):.0f} CPUs"
    if there.get("GPU", 0):
        told += f" and {free.get('GPU', 0):.0f} of {there['GPU']:.0f} GPUs"
    return f"{told} on {nodes} node{'' if nodes == 1 else 's'}"
