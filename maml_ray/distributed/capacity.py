"""How many rollout actors a cluster has room for, as it grows and shrinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from maml_ray.config import ClusterSettings

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the cluster: a look is a call to its head."""

Nodes = Sequence[Mapping[str, Any]]


def wanted_actors(settings: ClusterSettings, nodes: Nodes) -> int:
    """One actor a CPU of the living nodes, and no more than the settings allow."""
    cpus = sum(
        int(node.get("Resources", {}).get("CPU", 0)) for node in nodes if node.get("Alive", False)
    )
    return cpus if settings.rollout_actors is None else min(cpus, settings.rollout_actors)


class Capacity:
    """The cluster's nodes, looked at every so often.

    Args:
        settings: least and most actors.
        nodes: tells the cluster's nodes, as ``ray.nodes()``.
        demanded: how many actors an autoscaler is asked for; 0 without one.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        nodes: Callable[[], Nodes] = ray.nodes,
        *,
        demanded: int = 0,
    ) -> None:
        self._settings = settings
        self._demanded = demanded
        self._nodes = nodes
        self._looked = float("-inf")
        self._wanted = 0

    def wanted(self) -> int:
        """How many actors there should be: those that there is room for, or is to be."""
        return max(self.room(), self._demanded)

    def room(self) -> int:
        """How many actors there is room for, from a look that is at most two seconds old."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._wanted = wanted_actors(self._settings, self._nodes())
            self._looked = now
        return self._wanted

    def living(self) -> frozenset[str]:
        """Ids of the nodes that are there now."""
        return frozenset(node["NodeID"] for node in self._nodes() if node.get("Alive", False))

    def look_again(self) -> None:
        """What was seen is out of date: somebody has died."""
        self._looked = float("-inf")
