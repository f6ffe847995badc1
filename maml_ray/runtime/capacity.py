"""Plan which of a cluster's resources a run uses, and how many actors fit as nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from maml_ray.common.errors import ResourceError
from maml_ray.config.sections import ClusterSettings
from maml_ray.runtime.ray_internals import get_draining_nodes

REFRESH_INTERVAL_S = 2.0
"""Minimum seconds between two queries of the cluster: each is a call to its head node."""

Nodes = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ResourcePlan:
    """The resources that a run uses.

    Attributes:
        rollout_actors: number of rollout actors that fit now, one CPU each.
        learner_gpus: share of a GPU that each learner takes: 0 on a CPU; 0.5 if it shares the
            cluster's only GPU with its standby, else 1.
        learner_device: ``"cuda"`` or ``"cpu"``.
    """

    rollout_actors: int
    learner_gpus: float
    learner_device: str


def plan_resources(settings: ClusterSettings, available: Mapping[str, float]) -> ResourcePlan:
    """Plan a run's resources from the settings and the cluster's.

    The learner requests no CPU: it and the actors take turns. (With ``meta_batch.async_collection``
    they do not; then ``cluster.rollout_actors`` determines how many CPUs are left for it.) Nor does
    a standby learner, which is idle; on a GPU it takes one of its own, so that it survives the
    learner's node, or half of the only one. With ``cluster.autoscaler`` missing resources are
    waited for; ``cluster.learner_device: auto`` uses a GPU only if the cluster has one now.

    Args:
        settings: limits of the number of actors, and the learner's device.
        available: resources in the format of ``ray.cluster_resources()``.

    Raises:
        ResourceError: the cluster lacks requested resources.
    """
    cpus, gpus = int(available.get("CPU", 0)), int(available.get("GPU", 0))
    least, most = settings.min_rollout_actors, settings.rollout_actors
    growing = "; or set cluster.autoscaler=true if an autoscaler adds them"
    if cpus < least and not settings.autoscaler:
        raise ResourceError(
            f"the cluster has {cpus} CPUs, cluster.min_rollout_actors is {least}, and a rollout "
            "actor takes a CPU: add nodes with CPUs"
            + (", or ask for fewer" if least > 1 else "")
            + growing
        )
    if settings.learner_device == "cuda" and gpus < 1 and not settings.autoscaler:
        raise ResourceError(
            "cluster.learner_device = 'cuda', but the cluster has no GPU: add a node with one, "
            f"or set cluster.learner_device to auto or cpu{growing}"
        )
    on_gpu = settings.learner_device == "cuda" or (settings.learner_device == "auto" and gpus > 0)
    shared = settings.standby_learner and gpus == 1 and not settings.autoscaler
    return ResourcePlan(
        rollout_actors=cpus if most is None else min(most, cpus),
        learner_gpus=(0.5 if shared else 1) if on_gpu else 0,
        learner_device="cuda" if on_gpu else "cpu",
    )


def count_actor_slots(
    settings: ClusterSettings, nodes: Nodes, draining: Collection[str] = ()
) -> int:
    """Return one slot per CPU of the nodes that are alive and not draining.

    ``cluster.rollout_actors`` is the upper limit.
    """
    cpus = sum(
        int(node.get("Resources", {}).get("CPU", 0))
        for node in nodes
        if node.get("Alive", False) and node["NodeID"] not in draining
    )
    return cpus if settings.rollout_actors is None else min(cpus, settings.rollout_actors)


class Capacity:
    """The cluster's nodes, queried at most every ``REFRESH_INTERVAL_S``.

    Args:
        settings: lower and upper limit of the number of actors.
        list_nodes: returns the cluster's nodes in the format of ``ray.nodes()``.
        list_draining: returns the ids of nodes that are being drained.
        autoscaler_actors: number of actors to request from an autoscaler; 0 without one.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        list_nodes: Callable[[], Nodes] = ray.nodes,
        list_draining: Callable[[], Collection[str]] = get_draining_nodes,
        *,
        autoscaler_actors: int = 0,
    ) -> None:
        self._settings = settings
        self._autoscaler_actors = autoscaler_actors
        self._list_nodes = list_nodes
        self._list_draining = list_draining
        self._refreshed_at = float("-inf")
        self._num_slots = 0
        self._drained: set[str] = set()

    def target_actors(self) -> int:
        """Return how many actors to run: those that fit, or more for an autoscaler to see."""
        return max(self.num_slots(), self._autoscaler_actors)

    def num_slots(self) -> int:
        """Return how many actors fit on the cluster, at most ``REFRESH_INTERVAL_S`` old."""
        self.refresh()
        return self._num_slots

    def is_draining(self, node_id: str | None) -> bool:
        """Return whether a node is being drained, or was before it went away."""
        return node_id in self._drained

    @property
    def has_drained_nodes(self) -> bool:
        """Whether any node has been drained since the run began."""
        return bool(self._drained)

    def alive_nodes(self) -> frozenset[str]:
        """Return the ids of the nodes that are alive now."""
        return frozenset(node["NodeID"] for node in self._list_nodes() if node.get("Alive", False))

    def refresh(self) -> None:
        """Query the cluster, unless the last query is recent."""
        now = time.monotonic()
        if now - self._refreshed_at < REFRESH_INTERVAL_S:
            return
        self._drained.update(self._list_draining())  # Ray forgets a drained node once it is gone
        self._num_slots = count_actor_slots(self._settings, self._list_nodes(), self._drained)
        self._refreshed_at = now

    def invalidate(self) -> None:
        """Make the next call query the cluster, after an actor or a node died."""
        self._refreshed_at = float("-inf")


def autoscaler_demand(settings: ClusterSettings, num_tasks: int) -> int:
    """Return how many actors to keep pending, which is what makes an autoscaler add nodes.

    Args:
        settings: limits of the number of actors, and whether there is an autoscaler.
        num_tasks: tasks per meta-batch; more actors than those would idle.
    """
    if not settings.autoscaler:
        return 0
    return settings.rollout_actors or max(num_tasks, settings.min_rollout_actors)


def describe_free_resources() -> str:
    """Return the cluster's free and total CPUs and GPUs as text."""
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node.get("Alive", False))
    text = f"{free.get('CPU', 0):.0f} of {total.get('CPU', 0):.0f} CPUs"
    if total.get("GPU", 0):
        text += f" and {free.get('GPU', 0):.0f} of {total['GPU']:.0f} GPUs"
    return f"{text} are free on {nodes} node{'' if nodes == 1 else 's'}"
