"""``maml-ray docs``: read the documentation of the installed version, offline."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib import resources
from typing import Annotated, NamedTuple

import click
import typer
from rich.console import Console
from rich.table import Table

from maml_ray.cli.options import Panel
from maml_ray.common.errors import UserError
from maml_ray.config.error_messages import did_you_mean

_INDEX = "index"
_ENTRY = re.compile(
    r"^- \[(?P<title>[^\]]+)\]\((?P<name>[\w-]+)\.(md|ipynb)\): (?P<text>.+)$", re.M
)


class Page(NamedTuple):
    """An entry of the documentation's index."""

    name: str
    title: str
    description: str


def add_commands(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=Panel.HELP)(docs)


def docs(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="[PAGE]", help="Name of a page; lists all if omitted.", show_default=False
        ),
    ] = None,
) -> None:
    """Read the documentation of this version; it works offline.

    Prints the pages, or one of them: rendered on a terminal, as Markdown otherwise.

    [bold]Examples[/bold]

      maml-ray docs

      maml-ray docs tutorial

      maml-ray docs settings > settings.md
    """
    console = Console()
    if page is None:
        console.print(_table_of_pages(pages()))
        console.print("read one: maml-ray docs PAGE", highlight=False)
        return
    text = read_page(page)
    if not console.is_terminal:
        print(text)
        return
    with console.capture() as rendered:
        from rich.markdown import Markdown  # no other command needs it, and each would load it

        console.print(Markdown(text))
    if rendered.get().count("\n") < console.height:
        print(rendered.get(), end="")
    else:
        os.environ.setdefault("LESS", "-R")  # show colors instead of their codes
        click.echo_via_pager(rendered.get())


def pages() -> list[Page]:
    """Return all pages but the index itself, in the order of the index."""
    return [
        Page(entry["name"], entry["title"], entry["text"])
        for entry in _ENTRY.finditer(read_page(_INDEX))
    ]


def read_page(name: str) -> str:
    """Return a page as Markdown; a notebook without its outputs.

    Raises:
        UserError: there is no such page.
    """
    files = {file.name: file for file in (resources.files("maml_ray") / "docs").iterdir()}
    if markdown := files.get(f"{name}.md"):
        return markdown.read_text(encoding="utf-8")
    if notebook := files.get(f"{name}.ipynb"):
        return "\n\n".join(_cells(notebook.read_text(encoding="utf-8"))) + "\n"
    names = [page.name for page in pages()]
    raise UserError(
        f"there is no page {name!r:.60}{did_you_mean(name, names)} (pages: {', '.join(names)})"
    )


def _cells(notebook: str) -> Iterator[str]:
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        yield f"```python\n{source}\n```" if cell["cell_type"] == "code" else source


def _table_of_pages(found: list[Page]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for page in found:
        table.add_row(page.name, page.description)
    return table
