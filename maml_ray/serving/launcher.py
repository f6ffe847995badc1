"""Running the service from a program: Ray and Serve begun, the service up, and all ended again."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve
from ray.exceptions import RayError

from maml_ray.common.errors import ResourceError, UserError
from maml_ray.common.signals import StopRequest
from maml_ray.runtime.ray_internals import get_dashboard_url, owns_cluster
from maml_ray.runtime.ray_session import connected
from maml_ray.serving.ray_serve import build_app
from maml_ray.serving.settings import ServeSettings

APPLICATION = "maml-ray"
START_S = 120.0
"""How long a service may take to come up: a replica imports torch first."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""A line for every action would be most of what the service does."""
_POLL_S = 0.2
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass(frozen=True)
class Endpoint:
    """Where a service listens.

    Attributes:
        url: of the service.
        dashboard: of Ray; None where there is none.
    """

    url: str
    dashboard: str | None


def serve_until_stopped(
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    address: str | None,
    on_ready: Callable[[Endpoint], None],
) -> None:
    """Serve until a signal comes.

    Args:
        settings: of the service.
        host, port: where it listens, on the head of the cluster.
        address: of a Ray cluster; None to start Ray on this machine.
        on_ready: told where it listens, once it answers.

    Raises:
        UserError: the port is taken, or the service cannot come up.
        ResourceError: the cluster is not there, serves already, or lacks CPUs.
        Interrupted: the signal.
    """
    if address in (None, "auto", "local"):
        check_port(host, port)
    app = build_app(settings.model_dump())
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with connected(address), StopRequest() as stop, _serve(host, port):
        target = serve.RunTarget(app, name=APPLICATION, route_prefix="/", logging_config=LOGGING)
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_up(settings, stop)
        on_ready(Endpoint(_url(host, port), get_dashboard_url()))
        while True:
            stop.check()
            time.sleep(_POLL_S)


def check_port(host: str, port: int) -> None:
    """Whether the service can listen there: before Ray is started, not after it.

    Raises:
        UserError: it cannot.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "there can be no such host"
        raise UserError(
            f"cannot listen on port {port} of {host!r:.80} ({reason}): name another with --port "
            "or --host"
        ) from None


@contextmanager
def _serve(host: str, port: int) -> Iterator[None]:
    """Serve for the time of the service; on a Ray of our own it ends with Ray."""
    if serve.status().proxies:
        raise ResourceError(
            "Ray Serve runs on that cluster already: deploy there with 'serve deploy', of a file "
            "such as cluster/serve.yaml, or end it with 'serve shutdown'"
        )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=LOGGING,
        )
    except (RayError, RuntimeError, ValueError) as error:
        raise ResourceError(f"Ray Serve cannot start: {_last_line(str(error))}") from None
    try:
        yield
    finally:
        if not owns_cluster():
            serve.shutdown()


def _wait_until_up(settings: ServeSettings, stop: StopRequest) -> None:
    deadline = time.monotonic() + START_S
    while True:
        stop.check()
        status = serve.status().applications.get(APPLICATION)
        if status is not None and status.status == "RUNNING":
            return
        if status is not None and status.status in _FAILED:
            raise ResourceError(f"the service cannot start: {_reason(status)}")
        if time.monotonic() > deadline:
            raise ResourceError(_too_slow(settings, status))
        time.sleep(_POLL_S)


def _too_slow(settings: ServeSettings, status: object) -> str:
    waiting = [
        name
        for name, one in getattr(status, "deployments", {}).items()
        if str(getattr(one.status, "value", one.status)) != "HEALTHY"
    ]
    cpus = int(ray.cluster_resources().get("CPU", 0))
    free = int(ray.available_resources().get("CPU", 0))
    return (
        f"the service is not up within {START_S:.0f} seconds: {', '.join(waiting) or 'Serve'} "
        f"still starts; it takes {settings.replicas + settings.adapters} CPUs, and of the "
        f"cluster's {cpus} are {free} free: add nodes, or ask for fewer --replicas"
    )


def _reason(status: object) -> str:
    """Why an application failed: the last lines of what its deployments tell."""
    told = [getattr(one, "message", "") for one in getattr(status, "deployments", {}).values()]
    for message in (*told, str(getattr(status, "message", ""))):
        if "Error" in message:
            return _last_line(message)
    return _last_line(str(getattr(status, "message", "")))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason is known"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
