"""The command that serves a policy."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maml_ray.common.errors import UserError

if TYPE_CHECKING:
    from maml_ray.serving.launcher import Endpoint
    from maml_ray.serving.policy_store import ServedPolicy

_LONGEST_EXAMPLE = 40
"""Numbers of an observation that are printed."""


def add_commands(app: typer.Typer) -> None:
    """Make the command known."""
    app.command()(serve)


def serve(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run folder or its URL, or a folder that 'adapt' has made."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    checkpoint: Annotated[
        str,
        typer.Option(metavar="WHICH", help="newest, best (while it was trained), or its number."),
    ] = "newest",
    replicas: Annotated[int, typer.Option(min=1, help="Processes that act, one CPU each.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: 'auto', host:port or ray://host:port. Without one, Ray is started "
            "on this machine."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the token that callers must present; the environment variable "
            "MAML_RAY_SERVE_TOKEN does the same."
        ),
    ] = None,
) -> None:
    """Serve a policy over HTTP: it acts, and adapts to tasks and to data that callers send.

    Needs maml-ray\\[serve]. Runs until Ctrl-C. OpenAPI documentation is under /docs; for a service
    that outlives this command, deploy cluster/serve.yaml with 'serve deploy'.

    [bold]Examples[/bold]

      maml-ray serve runs/direction-20260101-120000

      maml-ray serve runs/direction-20260101-120000 --host 0.0.0.0 --token-file token
    """
    _check_installed()
    from maml_ray.serving.auth import load_token_digest
    from maml_ray.serving.launcher import serve_until_stopped
    from maml_ray.serving.policy_store import load_base_policy
    from maml_ray.serving.settings import parse_serve_settings

    settings = parse_serve_settings(
        {
            "run": run if "://" in run else os.path.abspath(run),
            "checkpoint": checkpoint,
            "replicas": replicas,
            "token_file": None if token_file is None else os.path.abspath(token_file),
        }
    )
    guarded = load_token_digest(settings.token_file) is not None
    base = load_base_policy(run, checkpoint)  # a mistake is told before Ray is started
    console = Console()

    def on_ready(endpoint: Endpoint) -> None:
        for line in _lines(base, run, endpoint, guarded=guarded, loopback=_is_loopback(host)):
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    serve_until_stopped(settings, host=host, port=port, address=address, on_ready=on_ready)


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import orjson  # noqa: F401
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"'maml-ray serve' needs Ray Serve ({error.name or error} is not there): "
            "pip install 'maml-ray[serve]'"
        ) from None


def _lines(
    base: ServedPolicy, run: str, endpoint: Endpoint, *, guarded: bool, loopback: bool
) -> list[str]:
    header = ' -H "Authorization: Bearer $MAML_RAY_SERVE_TOKEN"' if guarded else ""
    size = base.agent.spec.observation_size
    lines = [
        f"policy      {base.name} of {run}",
        f"service     {endpoint.url}, its documentation {endpoint.url}/docs",
    ]
    if endpoint.dashboard:
        lines.append(f"dashboard   {endpoint.dashboard} (its token: ray get-auth-token)")
    if not guarded and not loopback:
        lines.append("warning     anybody who reaches this port can use it: see --token-file")
    lines.append("try:")
    if size <= _LONGEST_EXAMPLE:
        body = json.dumps({"observations": [0] * size})
        lines.append(f"  curl{header} {endpoint.url}/act -d '{body}'")
    task = base.example_task
    if task is not None:
        lines.append(f"  curl{header} {endpoint.url}/adapt -d '{json.dumps({'task': task})}'")
    return [*lines, "Ctrl-C ends it"]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
