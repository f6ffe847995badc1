"""Command line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maml_ray.config.presets import PRESETS

SettingsFile = Annotated[
    Path | None,
    typer.Argument(metavar="[DEPLOY.YAML]", help="Settings file; defaults if omitted."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable."),
]
Preset = Annotated[
    str | None, typer.Option(help=f"Start from a named preset: {', '.join(sorted(PRESETS))}.")
]
StartAddress = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: 'auto', host:port or ray://host:port. If omitted, Ray starts on this "
        "machine; a submitted job uses its own cluster."
    ),
]
ConnectAddress = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: 'auto', host:port or ray://host:port. If omitted, the cluster of this "
        "machine; a submitted job uses its own."
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory created by 'train'.")]
OptionalRun = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="Run directory created by 'train'.")
]
Checkpoint = Annotated[
    str,
    typer.Option(
        metavar="WHICH", help="Checkpoint: newest, best (by training return), or its number."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")]
