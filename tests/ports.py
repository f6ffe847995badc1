"""Find ports: one that nothing listens on, and those at which a program listens."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

import psutil


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listening_ports(pid: int) -> dict[int, bool]:
    """Return the TCP ports of a process and its descendants, and if other machines reach them."""
    found: dict[int, bool] = {}
    program = psutil.Process(pid)
    for process in (program, *program.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(connection.laddr.ip)
                    unmapped = getattr(address, "ipv4_mapped", None) or address
                    port = connection.laddr.port
                    found[port] = found.get(port, False) or not unmapped.is_loopback
    return found
