"""Test ``maml-ray docs``: the pages are listed, read and, on a terminal, rendered."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from maml_ray.cli import docs
from tests.bad_input.command_line import assert_refused, run


def test_pages_are_listed_with_their_descriptions() -> None:
    outcome = run("docs")
    assert outcome.code == 0
    for page in docs.pages():
        assert f" {page.name} " in outcome.out
        assert page.description.split()[0] in outcome.out


def test_a_page_that_is_piped_is_markdown() -> None:
    page = Path(docs.__file__).parents[1] / "docs" / "architecture.md"
    assert run("docs", "architecture").out.rstrip() == page.read_text(encoding="utf-8").rstrip()


def test_a_notebook_is_read_without_its_outputs() -> None:
    text = run("docs", "tutorial").out
    assert text.startswith("# ")
    assert "```python\nimport maml_ray\n" in text
    assert '"cell_type"' not in text


@pytest.mark.parametrize("height", [10, 100_000])
def test_a_long_page_on_a_terminal_is_rendered_in_a_pager(
    height: int, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(force_terminal=True, width=80, height=height)
    with (
        mock.patch.object(docs, "Console", return_value=terminal),
        mock.patch("click.echo_via_pager") as pager,
    ):
        docs.docs("architecture")
    printed = capsys.readouterr().out
    shown = pager.call_args.args[0] if height == 10 else printed
    assert "Architecture" in shown
    assert "# Architecture" not in shown
    assert (printed == "") == (height == 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("architectur", ["no page 'architectur'", "did you mean 'architecture'?"]),
        ("../cli/main", ["no page"]),
        ("", ["no page ''"]),
    ],
)
def test_an_unknown_page_is_refused(name: str, words: list[str]) -> None:
    assert_refused(run("docs", name), *words)
