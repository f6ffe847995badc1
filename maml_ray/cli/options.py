"""The options of every command that takes settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maml_ray.config.presets import PRESETS

SettingsFile = Annotated[
    Path | None,
    typer.Argument(metavar="[DEPLOY.YAML]", help="Settings file; all defaults without one."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; may be repeated."),
]
Preset = Annotated[
    str | None, typer.Option(help=f"Start from a named preset: {', '.join(sorted(PRESETS))}.")
]
