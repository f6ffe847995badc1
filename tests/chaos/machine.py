"""Run a Ray cluster of several nodes on this machine, and find a run's processes on it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray.core.generated import autoscaler_pb2

HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Makes Ray notice a lost node within seconds instead of half a minute."""
NODES, CPUS = 3, 1
ROLLOUT, LEARNER = ("RolloutActor", "collect["), ("LearnerActor", "meta-update")
"""Prefixes of the process titles of each kind of worker, when idle and when working."""


class Machine:
    """A head without CPUs, and nodes that come and go.

    Args:
        nodes: how many nodes with a CPU to begin with.
    """

    def __init__(self, nodes: int = NODES) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 120_000_000},
        )
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()

    @property
    def address(self) -> str:
        """Address of the cluster."""
        return str(self._cluster.address)

    @property
    def nodes(self) -> int:
        """Number of nodes, without the head."""
        return len(self._nodes)

    @property
    def ids(self) -> list[str]:
        """Ids of the nodes, without the head."""
        return [str(node.node_id) for node in self._nodes]

    def add_node(self, cpus: int = CPUS, gpus: int = 0) -> str:
        """Add a node with nominal CPUs and GPUs; return its id."""
        made = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=100_000_000)
        self._nodes.append(made)
        return str(made.node_id)

    def announce(self, node_id: str, within_s: float = 60.0) -> None:
        """Drain a node, as a cloud's preemption watcher does."""
        kinds: Any = autoscaler_pb2
        reason = kinds.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        moment_ms = int((time.time() + within_s) * 1000)
        core: Any = ray
        head = core._raylet.GcsClient(address=self.address)
        accepted, why = head.drain_node(node_id, reason, "a spot machine", moment_ms)
        assert accepted, why

    def announce_one(self, rng: random.Random) -> str:
        """Drain a random node; return its id."""
        node_id = str(rng.choice(self._nodes).node_id)
        self.announce(node_id)
        return node_id

    def remove_node(self, rng: random.Random) -> None:
        """Kill a random node with all its processes."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)

    def remove_nodes(self, ids: set[str]) -> None:
        """Kill the nodes of these ids with all their processes."""
        for node in [node for node in self._nodes if node.node_id in ids]:
            self._nodes.remove(node)
            self._cluster.remove_node(node, allow_graceful=False)

    def crash_node(self, node_id: str) -> None:
        """Kill all processes of a node at one moment, as a loss of power does."""
        (node,) = (node for node in self._nodes if node.node_id == node_id)
        for process in _raylet(node).children(recursive=True):
            process.kill()
        self.remove_nodes({node_id})

    def crash(self) -> None:
        """Kill all processes of the head, and then of the nodes."""
        head = self._cluster.head_node
        assert head is not None, "it has crashed already"
        for process in _raylet(head).children(recursive=True):
            process.kill()
        self._cluster.remove_node(head, allow_graceful=False)
        for node_id in self.ids:
            self.crash_node(node_id)

    def workers(self, kind: tuple[str, str]) -> list[psutil.Process]:
        """Return the living processes of ``kind`` on all nodes."""
        nodes = (self._cluster.head_node, *self._nodes)
        found = [process for node in nodes for process in _workers(node, kind)]
        return sorted(found, key=lambda process: process.pid)

    def ids_with(self, kind: tuple[str, str]) -> list[str]:
        """Return the ids of the nodes, without the head, that have a living process of ``kind``."""
        return [str(node.node_id) for node in self._nodes if _workers(node, kind)]

    def hit(self, kind: tuple[str, str], number: signal.Signals, rng: random.Random) -> int | None:
        """Send a signal to a random worker; return its process id, or None if there is none."""
        there = self.workers(kind)
        if not there:
            return None
        chosen = rng.choice(there)
        try:
            chosen.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        return int(chosen.pid)

    def node_of(self, pid: int) -> str:
        """Return the id of the node on which a worker process runs."""
        parents = {parent.pid for parent in psutil.Process(pid).parents()}
        (found,) = (
            node
            for node in (self._cluster.head_node, *self._nodes)
            if node.all_processes["raylet"][0].process.pid in parents
        )
        return str(found.node_id)

    def close(self) -> None:
        """Stop the cluster."""
        self._cluster.shutdown()


@contextmanager
def machine(nodes: int = NODES) -> Iterator[Machine]:
    """Run a cluster inside the block, with health checks every second."""
    before = {name: os.environ.get(name) for name in HEALTH}
    os.environ.update(HEALTH)
    made = Machine(nodes)
    try:
        yield made
    finally:
        made.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _workers(node: Any, kind: tuple[str, str]) -> list[psutil.Process]:
    return [child for child in _raylet(node).children(recursive=True) if _is(child, kind)]


def _is(process: psutil.Process, kind: tuple[str, str]) -> bool:
    try:
        title = " ".join(process.cmdline()).removeprefix("ray::")
        return title.startswith(kind) and process.status() not in (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_STOPPED,
        )
    except psutil.Error:
        return False
