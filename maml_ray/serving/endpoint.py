"""Listen on an address, and describe where a service listens."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from maml_ray.common.errors import UserError

BACKLOG = 2048
"""Connections that the operating system keeps waiting to be accepted."""


@dataclass(frozen=True)
class Endpoint:
    """Addresses of a running service.

    Attributes:
        url: URL of the service.
        dashboard: URL of Ray's dashboard; None without one.
    """

    url: str
    dashboard: str | None = None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``port``; connections wait in it until they are accepted.

    Raises:
        UserError: the port is taken, or the host is not an address of this machine.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "invalid host name"
        raise UserError(
            f"cannot listen on port {port} of {host!r:.80} ({reason}): choose another with --port "
            "or --host"
        ) from None
    return bound


def url_of(host: str, port: int) -> str:
    """Return the URL of a service on ``port`` of ``host``."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
