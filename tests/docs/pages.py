"""Find the documentation's pages, and extract code, commands, headings and links from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maml_ray.cli.docs import read_page

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "maml_ray" / "docs"

_FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.M)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SCHEME = re.compile(r"[a-z]+:")


@dataclass(frozen=True)
class Fence:
    """A block of code.

    Attributes:
        page: file that contains it.
        line: number of its first line of code.
        code: its lines.
    """

    page: Path
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def all_pages() -> list[Path]:
    """Return the files of all pages, and the README."""
    return [ROOT / "README.md", *sorted(path for path in FOLDER.iterdir() if path.is_file())]


def text_of(page: Path) -> str:
    """Return a page's Markdown; of a notebook, its cells."""
    return read_page(page.stem) if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> Iterator[Fence]:
    """Yield the blocks of code in ``language``, in order."""
    text = text_of(page)
    for found in _FENCE.finditer(text):
        if found["language"] == language:
            yield Fence(page, text.count("\n", 0, found.start()) + 2, found["code"])


def python_block(page: str, marker: str) -> str:
    """Return the only block of Python on ``page`` that contains ``marker``."""
    (found,) = (block.code for block in fences(FOLDER / page, "python") if marker in block.code)
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give a page's headings."""
    headings = _HEADING.findall(_FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's relative links and pictures."""
    prose = _FENCE.sub("", text_of(page))
    return [target for target in _LINK.findall(prose) if not _SCHEME.match(target)]
