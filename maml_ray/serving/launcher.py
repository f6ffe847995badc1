"""Run a service in the foreground: start Ray and Ray Serve, deploy, and stop on a signal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray import serve
from ray.exceptions import RayError

from maml_ray.common.errors import ResourceError
from maml_ray.common.signals import StopRequest
from maml_ray.runtime.connection.connect import connected
from maml_ray.runtime.ray_internals import get_dashboard_url, owns_cluster
from maml_ray.serving.endpoint import Endpoint, listen, url_of
from maml_ray.serving.ray_serve import build_app
from maml_ray.serving.settings import ServeSettings

APPLICATION = "maml-ray"
START_TIMEOUT_S = 120.0
"""Generous, since each replica imports torch first."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Without an access log: one line per action would be most of the service's work."""
_POLL_INTERVAL_S = 0.2
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def serve_until_stopped(
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    address: str | None,
    on_ready: Callable[[Endpoint], None],
) -> None:
    """Serve until a signal arrives.

    Args:
        settings: settings of the service.
        host, port: address to listen on, on the cluster's head.
        address: address of a Ray cluster; None to start Ray on this machine.
        on_ready: called once the service accepts requests.

    Raises:
        UserError: the port is taken.
        ResourceError: the cluster cannot be reached, runs Ray Serve already or lacks CPUs, or the
            service cannot start.
        Interrupted: a signal arrived.
        ClusterLost: a process of Ray has died.
    """
    if address in (None, "auto", "local"):
        listen(host, port).close()  # before Ray takes seconds to start
    app = build_app(settings.model_dump())
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with (
        connected(address, "--address") as session,
        StopRequest(session.check) as stop,
        _running_serve(host, port),
    ):
        target = serve.RunTarget(app, name=APPLICATION, route_prefix="/", logging_config=LOGGING)
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_running(settings, stop)
        on_ready(Endpoint(url_of(host, port), get_dashboard_url()))
        while True:
            stop.check()
            time.sleep(_POLL_INTERVAL_S)


@contextmanager
def _running_serve(host: str, port: int) -> Iterator[None]:
    """Start Ray Serve, and stop it at the end unless it stops with our own Ray."""
    if serve.status().proxies:
        raise ResourceError(
            "Ray Serve runs on that cluster already: deploy there with 'serve deploy' and a file "
            "such as cluster/serve.yaml, or stop it with 'serve shutdown'"
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


def _wait_until_running(settings: ServeSettings, stop: StopRequest) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        stop.check()
        status = serve.status().applications.get(APPLICATION)
        if status is not None and status.status == "RUNNING":
            return
        if status is not None and status.status in _FAILED:
            raise ResourceError(f"the service cannot start: {_failure_reason(status)}")
        if time.monotonic() > deadline:
            raise ResourceError(_timeout_message(settings, status))
        time.sleep(_POLL_INTERVAL_S)


def _timeout_message(settings: ServeSettings, status: object) -> str:
    starting = [
        name
        for name, deployment in getattr(status, "deployments", {}).items()
        if str(getattr(deployment.status, "value", deployment.status)) != "HEALTHY"
    ]
    cpus = int(ray.cluster_resources().get("CPU", 0))
    free = int(ray.available_resources().get("CPU", 0))
    return (
        f"the service did not start within {START_TIMEOUT_S:.0f} s, waiting for "
        f"{', '.join(starting) or 'Ray Serve'}: it needs {settings.replicas + settings.adapters} "
        f"CPUs and {free} of the cluster's {cpus} are free; add nodes, or reduce --replicas"
    )


def _failure_reason(status: object) -> str:
    """Return the last line of the first error message of an application's deployments."""
    deployments = getattr(status, "deployments", {}).values()
    application_message = str(getattr(status, "message", ""))
    for message in (*(getattr(each, "message", "") for each in deployments), application_message):
        if "Error" in message:
            return _last_line(message)
    return _last_line(application_message)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason is known"
