"""The ``serve`` command."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maml_ray.cli.options import (
    Checkpoint,
    Imports,
    Panel,
    path_of,
)
from maml_ray.cli.tables import print_line
from maml_ray.common.errors import UserError
from maml_ray.common.locations import escape_path, parse_location

if TYPE_CHECKING:
    from maml_ray.serving.endpoint import Endpoint
    from maml_ray.serving.served_policy import ServedPolicy

_MAX_EXAMPLE_SIZE = 40
"""Largest observation for which an example request is printed."""
_WITH_OPTION = {
    "run": "the argument RUN",
    "checkpoint": "--checkpoint",
    "imports": "--import",
    "replicas": "--ray --replicas",
    "adapters": "--adapters",
    "access_log": "--access-log",
    "token_file": "--token-file",
}
"""Arguments of the service that ``--set`` may not give a second time."""


def add_commands(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=Panel.RUNS)(serve)


def serve(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run directory or its URL, or a directory created by 'adapt'."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    checkpoint: Checkpoint = "newest",
    adapters: Annotated[
        int, typer.Option(min=1, help="Processes that adapt, one request at a time each.")
    ] = 1,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that callers must present; alternative to the environment "
            "variable MAML_RAY_SERVE_TOKEN.",
            parser=path_of("--token-file"),
        ),
    ] = None,
    access_log: Annotated[
        bool,
        typer.Option("--access-log", help="Print a line of JSON for each request."),
    ] = False,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A limit of the service, such as max_age_s=3600 (repeatable); the page 'serving' "
            "of 'maml-ray docs' lists them.",
        ),
    ] = None,
    imports: Imports = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve on a Ray cluster, by Ray Serve.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --ray: cluster, as 'auto', host:port or ray://host:port. If omitted, Ray "
            "starts on this machine; a submitted job uses its own cluster."
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="With --ray: processes that act, one CPU each.")
    ] = None,
) -> None:
    """Serve a policy over HTTP: actions, and adaptation to tasks or to data in the request.

    One process acts, and another one adapts. Runs until Ctrl-C. OpenAPI documentation is at /docs.
    Needs maml-ray\\[serve].

    With --ray, Ray Serve does the same with processes on all machines of a cluster. For a service
    that outlives this command, deploy cluster/serve.yaml with 'serve deploy'.

    [bold]Examples[/bold]

      maml-ray serve runs/direction-20260101-120000

      maml-ray serve runs/direction-20260101-120000 --host 0.0.0.0 --token-file token

      maml-ray serve s3://bucket/runs/direction --ray --address auto --replicas 4
    """
    if not ray:
        for option, value in (("--address", address), ("--replicas", replicas)):
            if value is not None:
                raise UserError(f"{option} applies to Ray Serve only: add --ray, or omit {option}")
    _check_installed(ray=ray)
    from maml_ray.serving.http.access import is_loopback, load_token_digest
    from maml_ray.serving.served_policy import load_base_policy
    from maml_ray.serving.settings import parse_serve_settings
    from maml_ray.tasks.loading import import_modules

    location = parse_location(run, "RUN")
    settings = parse_serve_settings(
        {
            "run": escape_path(location.absolute()) if isinstance(location, Path) else location,
            "checkpoint": checkpoint,
            "imports": imports or (),
            "replicas": replicas or 1,
            "adapters": adapters,
            "access_log": access_log,
            "token_file": None if token_file is None else escape_path(token_file.absolute()),
            **_parse_limits(limits or ()),
        }
    )
    token_required = load_token_digest(settings.token_file) is not None
    import_modules(settings.imports, settings.run)
    base = load_base_policy(settings.run, checkpoint)  # report errors before Ray starts
    console = Console()

    def on_ready(endpoint: Endpoint) -> None:
        for line in _ready_message(
            base,
            run,
            endpoint,
            token_required=token_required,
            loopback=host == "localhost" or is_loopback(host),
        ):
            print_line(console, line)

    if ray:
        from maml_ray.serving import launcher

        launcher.serve_until_stopped(
            settings, host=host, port=port, address=address, on_ready=on_ready
        )
    else:
        from maml_ray.serving import server

        server.serve_until_stopped(settings, base, host=host, port=port, on_ready=on_ready)


def _parse_limits(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name.isidentifier() or not value:
            raise UserError(f"--set {pair!r:.80}: write NAME=VALUE, such as max_age_s=3600")
        if name in _WITH_OPTION:
            raise UserError(f"--set {pair!r:.80}: use {_WITH_OPTION[name]} instead")
    return dict(pair.split("=", 1) for pair in pairs)


def _check_installed(*, ray: bool) -> None:
    needed = ["fastapi", "orjson", "uvicorn", *(["ray.serve"] if ray else [])]
    for module in needed:
        try:
            importlib.import_module(module)
        except ImportError as error:
            extra = "serve-ray" if module == "ray.serve" else "serve"
            raise UserError(
                f"'maml-ray serve{' --ray' if ray else ''}' needs {error.name or module}, which is "
                f"not installed: pip install 'maml-ray[{extra}]'"
            ) from None


def _ready_message(
    base: ServedPolicy, run: str, endpoint: Endpoint, *, token_required: bool, loopback: bool
) -> list[str]:
    curl = "curl -H 'Content-Type: application/json'"
    if token_required:
        curl += ' -H "Authorization: Bearer $MAML_RAY_SERVE_TOKEN"'
    size = base.agent.spec.observation_size
    lines = [
        f"policy      {base.name} of {run}",
        f"service     {endpoint.url}, documentation at {endpoint.url}/docs",
    ]
    if endpoint.dashboard:
        lines.append(f"dashboard   {endpoint.dashboard} (its token: ray get-auth-token)")
    if not token_required and not loopback:
        lines.append("warning     anyone who can reach this port can use it: see --token-file")
    lines.append("try:")
    if size <= _MAX_EXAMPLE_SIZE:
        body = json.dumps({"observations": [0] * size})
        lines.append(f"  {curl} {endpoint.url}/act -d '{body}'")
    task = base.example_task
    if task is not None:
        body = shlex.quote(json.dumps({"task": task}))
        lines.append(f"  {curl} {endpoint.url}/adapt -d {body}")
    return [*lines, "stop with Ctrl-C"]
