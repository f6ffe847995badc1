"""What a run asks of a cluster that grows, and how it tells what the cluster has."""

from __future__ import annotations

import ray

from maml_ray.config.settings import ClusterSettings


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
