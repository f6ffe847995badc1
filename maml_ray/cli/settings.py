"""Commands about settings and tasks: ``init``, ``explain``, ``presets`` and ``tasks``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import maml_ray
from maml_ray.cli.options import Panel, Preset, complete_key, complete_preset, path_of
from maml_ray.cli.tables import print_line
from maml_ray.common.commands import quote_location
from maml_ray.common.errors import UserError, error_reason
from maml_ray.common.safe_files import write_atomic
from maml_ray.common.yaml_data import dump_yaml
from maml_ray.config.error_messages import did_you_mean
from maml_ray.config.loading import load_settings
from maml_ray.config.presets import PRESETS
from maml_ray.config.reference import SCHEMA_FILE, Setting, SettingsSection, find, sections
from maml_ray.config.template import commented_yaml

_SETTINGS_FILE = "deploy.yaml"


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (init, explain, presets, tasks):
        app.command(rich_help_panel=Panel.SETTINGS)(command)


def init(
    path: Annotated[
        Path,
        typer.Argument(metavar="[PATH]", help="File or directory.", parser=path_of("PATH")),
    ] = Path(_SETTINGS_FILE),
    preset: Preset = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Also write the manifests for clusters, to cluster/."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write a settings file with every key, its description and its value.

    With --cluster, also writes a directory cluster/ next to it: a Dockerfile, manifests for
    Kubernetes, AWS, Google Cloud and own machines, monitoring, and a README.md that explains them.

    [bold]Examples[/bold]

      maml-ray init

      maml-ray init experiment/deploy.yaml --preset direction

      maml-ray init --cluster
    """
    file = path if path.suffix in (".yaml", ".yml") else path / _SETTINGS_FILE
    if file != path and (path.is_file() or (path.suffix[1:].isalpha() and not path.is_dir())):
        raise UserError(
            f"{path} is not the name of a settings file: end it in .yaml, or name a directory"
        )
    manifests = file.parent / "cluster"
    text = commented_yaml(load_settings(preset=preset), _schema_path(file))
    for existing in (file, manifests) if cluster else (file,):
        if existing.exists() and not force:
            raise UserError(
                f"{existing} already exists: name another path, or overwrite it with --force"
            )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
        if cluster:
            shutil.copytree(_manifests_folder(), manifests, dirs_exist_ok=True)
    except OSError as error:
        failed = manifests if file.exists() else file
        raise UserError(f"{failed} cannot be written: {error_reason(error)}") from None
    console = Console()
    print_line(console, f"wrote {file}; train with: maml-ray train {quote_location(file)}")
    if cluster:
        print_line(console, f"wrote {manifests}; see {manifests / 'README.md'}")


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            help="A setting or a section; all if omitted.",
            autocompletion=complete_key,
        ),
    ] = None,
) -> None:
    """Describe a setting or a section: what it does, what it allows, and its default.

    [bold]Examples[/bold]

      maml-ray explain outer.epochs

      maml-ray explain cluster
    """
    console = Console()
    for found in sections() if key is None else (find(key),):
        if isinstance(found, Setting):
            _print_setting(console, found)
        else:
            _print_section(console, found)


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Print the settings of this preset.",
            autocompletion=complete_preset,
        ),
    ] = None,
) -> None:
    """List the presets, or print the settings of one.

    Durations are of a run on 2 CPUs; those of an hour or more are estimates.

    [bold]Examples[/bold]

      maml-ray presets

      maml-ray presets direction
    """
    console = Console()
    if name is None:
        table = _table("preset", "trains", "about")
        for each, preset in PRESETS.items():
            table.add_row(each, escape(preset.description), preset.duration)
        console.print(table)
        print_line(console, "train with: maml-ray train --preset NAME")
        return
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r:.60}{did_you_mean(name, PRESETS)}")
    print(f"# {PRESETS[name].description}")
    print(dump_yaml(PRESETS[name].settings), end="")


def tasks() -> None:
    """List the built-in task families: their tasks, parameters and options.

    A task's parameters distinguish it from others of its family; options are the same for all
    tasks of a run.

    [bold]Examples[/bold]

      maml-ray tasks

      maml-ray train --set task.name=ant-velocity --set 'task.options.speed_range=[0, 2]'
    """
    from maml_ray.tasks.catalog import describe_families

    console = Console()
    for family in describe_families():
        options = ", ".join(f"{name}: {value}" for name, value in family.options.items())
        print_line(console, f"{family.name}: {family.description}")
        print_line(console, f"  parameters: {family.parameters or 'none'}")
        print_line(console, f"  options: {options}")
    print_line(console, "train with: maml-ray train --set task.name=FAMILY")
    print_line(console, "your own tasks: maml-ray docs tasks")


def _schema_path(file: Path) -> str:
    """Return the path of the JSON schema from the settings file, if it is below its directory."""
    folder = file.absolute().parent
    inside = SCHEMA_FILE.is_relative_to(folder)
    return (SCHEMA_FILE.relative_to(folder) if inside else SCHEMA_FILE).as_posix()


def _manifests_folder() -> Path:
    """Return the directory of manifests: in the package, or next to it in a clone."""
    package = Path(maml_ray.__file__).parent
    installed = package / "cluster"
    return installed if installed.is_dir() else package.parent / "cluster"


def _print_setting(console: Console, setting: Setting) -> None:
    in_presets = ", ".join(f"{name} {value}" for name, value in setting.in_presets().items())
    for line in (
        setting.key,
        f"  {setting.description}",
        f"  allowed: {setting.allowed}",
        f"  default: {setting.default}",
        *([f"  presets: {in_presets}"] if in_presets else []),
    ):
        print_line(console, line)


def _print_section(console: Console, section: SettingsSection) -> None:
    print_line(console, f"{section.key}: {section.description}")
    table = _table("key", "default", "description")
    for setting in section.settings:
        name = setting.key.rpartition(".")[2]
        table.add_row(name, escape(setting.default), escape(setting.description))
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, overflow="fold")
    return table
