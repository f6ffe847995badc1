"""Command line options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from maml_ray.common.locations import parse_path
from maml_ray.config.presets import PRESETS
from maml_ray.config.reference import find, sections
from maml_ray.config.section import dotted_keys
from maml_ray.config.settings import Settings


class Panel(StrEnum):
    """Groups of commands in the help of ``maml-ray``."""

    TRAIN = "Train"
    SETTINGS = "Settings and tasks"
    RUNS = "Trained runs"
    CLUSTERS = "Clusters"
    HELP = "Help"


def complete_preset(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield presets and their descriptions."""
    for name, preset in PRESETS.items():
        if name.startswith(incomplete):
            yield name, preset.description


def complete_key(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield keys of settings and sections, and their descriptions."""
    for key in [*(section.key for section in sections()), *dotted_keys(Settings)]:
        if key.startswith(incomplete):
            yield key, find(key).description


def complete_override(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield ``key=`` for each setting, and its description."""
    for key in dotted_keys(Settings):
        if f"{key}=".startswith(incomplete):
            yield f"{key}=", find(key).description


def complete_run(incomplete: str) -> Iterator[str]:
    """Yield the run directories in ``runs``, the newest first."""
    found = filter(Path.is_file, Path("runs").glob("*/settings.yaml"))
    for settings in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if str(settings.parent).startswith(incomplete):
            yield str(settings.parent)


def with_shorthands(
    overrides: Sequence[str] | None, seed: int | None, iterations: int | None
) -> list[str]:
    """Return overrides of settings, with ``--seed`` and ``--iterations`` among them."""
    shorthands = {"run.seed": seed, "run.iterations": iterations}
    given = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    return [*(overrides or ()), *given]


def path_of(name: str) -> Callable[[str | os.PathLike[str]], Path]:
    """Return the parser of an option or argument that is a path, by its name in messages."""

    def path(value: str | os.PathLike[str]) -> Path:  # its name is the metavar in --help
        return parse_path(value, name)

    return path


SettingsFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DEPLOY.YAML]",
        help="Settings file; defaults if omitted.",
        parser=path_of("DEPLOY.YAML"),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change one setting; repeatable.",
        autocompletion=complete_override,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Start from a preset; see 'maml-ray presets'.", autocompletion=complete_preset
    ),
]
RunSeed = Annotated[
    int | None, typer.Option(help="Short for --set run.seed=N.", metavar="N", show_default=False)
]
Iterations = Annotated[
    int | None,
    typer.Option(help="Short for --set run.iterations=N.", metavar="N", show_default=False),
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
_RUN = typer.Argument(
    metavar="RUN",
    help="Run directory created by 'train'.",
    autocompletion=complete_run,
    parser=path_of("RUN"),
)
Run = Annotated[Path, _RUN]
OptionalRun = Annotated[Path | None, _RUN]
Checkpoint = Annotated[
    str,
    typer.Option(
        metavar="WHICH", help="Checkpoint: newest, best (by training return), or its number."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Module of your own tasks, which the record of a run may then name; repeatable.",
    ),
]
