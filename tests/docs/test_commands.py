"""The commands of every page are accepted by their programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.exceptions import TyperException

from tests.cluster.command_checks import CHECKS, SETTINGS_FILES, check_maml_ray, program
from tests.cluster.commands import Command, in_line
from tests.docs.pages import all_pages, fences, text_of

NOT_CHECKED = {
    "cd",
    "curl",
    "git",
    "jupyter",
    "pre-commit",
    "python",
    "source",
    "tensorboard",
    "uv",
}


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page's ``console`` blocks."""
    for block in fences(page, "console"):
        for line in block.code.replace("\\\n", " ").splitlines():
            assert line.startswith("$ "), f"{block}: begin a command with '$ ': {line}"
            yield from in_line(line.removeprefix("$ "), page.name)


def check(command: Command, page: Path) -> None:
    """Check a command; its settings file may be any that the page's text names."""
    name, arguments = program(command), list(command.words[1:])
    if name == "maml-ray":
        named = re.findall(r"`([\w./-]+\.yaml)`", text_of(page))
        check_maml_ray(arguments, (*SETTINGS_FILES, *map(Path, named)))
    elif name not in NOT_CHECKED:
        assert name in CHECKS, f"there is no check of {name}"
        CHECKS[name](arguments)


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    for command in commands(page):
        try:
            check(command, page)
        except (click.ClickException, TyperException, SystemExit, AssertionError) as error:
            raise AssertionError(f"{command}: {error}") from error
