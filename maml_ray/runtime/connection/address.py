"""Find where a Ray cluster is, and check within seconds that it answers."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import grpc

from maml_ray.common.errors import ResourceError
from maml_ray.config.value_types import check_cluster_address
from maml_ray.runtime.ray_internals import find_running_cluster

CONNECT_TIMEOUT_S = 10.0
ADDRESS_VARIABLE = "RAY_ADDRESS"
THIS_MACHINE = "the last 'ray start' on this machine"
_REMEDIES = {
    ADDRESS_VARIABLE: "unset RAY_ADDRESS to use this machine alone, or set it to the address "
    "that 'ray start' prints",
    THIS_MACHINE: "that cluster is gone or hangs: run 'ray stop', then 'ray start --head'",
}
"""What to do about an address where no cluster answers, by where it comes from."""


@dataclass(frozen=True)
class ClusterAddress:
    """The address of a cluster.

    Attributes:
        value: host:port or ray://host:port; ``"auto"`` for a cluster that runs on this machine,
            ``"local"`` for one that is to be started.
        source: where it comes from: a setting, an option or a variable.
    """

    value: str
    source: str

    def __str__(self) -> str:
        return f"{self.value!r:.80} ({self.source})"


def find_address(address: str | None, source: str = "cluster.address") -> ClusterAddress:
    """Return the address that ``ray.init(address)`` joins: ``RAY_ADDRESS`` precedes ``"auto"``."""
    variable = os.environ.get(ADDRESS_VARIABLE)
    if variable and address in (None, "auto"):
        return ClusterAddress(variable, ADDRESS_VARIABLE)
    return ClusterAddress(address or "local", source)


def check_address(address: ClusterAddress) -> None:
    """Check that a cluster answers at an address, unless it is to be started here.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: no cluster answers there, or none runs on this machine.
    """
    if address.value == "local":
        return
    if address.value != "auto":
        check_reachable(address)
        return
    running = find_running_cluster()
    if running is None:
        raise ResourceError(
            "no Ray cluster runs on this machine: start one with 'ray start --head', or pass the "
            "address of one"
        )
    check_reachable(ClusterAddress(running, THIS_MACHINE))


def check_reachable(address: ClusterAddress) -> None:
    """Check an address within ``CONNECT_TIMEOUT_S``; ``ray.init`` would try for many minutes.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: no server answers there.
    """
    check_cluster_address(address.value, address.source)
    target = address.value.removeprefix("ray://")
    if not _is_served(target):
        remedy = "check the address (ray start prints it) and that the port is open"
        raise ResourceError(
            f"no Ray cluster answers at {address} within {CONNECT_TIMEOUT_S:.0f} seconds: "
            f"{_REMEDIES.get(address.source, remedy)}"
        )


def _is_served(target: str) -> bool:
    """Return whether a gRPC server answers at host:port within ``CONNECT_TIMEOUT_S``."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):  # it would refuse a plain channel
        try:
            socket.create_connection(host_and_port(target), CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return True
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of host:port or ray://host:port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)
