"""Links lead somewhere, and every page is found where a reader looks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from maml_ray.cli.docs import pages
from tests.docs.pages import FOLDER, ROOT, all_pages, anchors, links

NAMES = [path.stem for path in all_pages() if path.parent == FOLDER and path.stem != "index"]


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: there is no {link}"
        if page.parent == FOLDER:
            assert target.is_relative_to(FOLDER), f"{page.name}: {link} is not installed with it"
        if anchor and target.suffix in (".md", ".ipynb"):
            assert anchor in anchors(target), f"{page.name}: there is no heading for {link}"


def test_the_index_lists_every_page_once() -> None:
    listed = [page.name for page in pages()]
    assert sorted(listed) == sorted(NAMES)
    assert all(page.description for page in pages())


def test_the_site_has_the_pages_in_the_order_of_the_index() -> None:
    navigation: Any = yaml.load((ROOT / ".github" / "mkdocs.yml").read_text(), yaml.BaseLoader)
    found = [Path(page).stem for page in _leaves(navigation["nav"]) if "api/" not in page]
    assert found == ["index", *(page.name for page in pages())]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value
    return [leaf for part in inside for leaf in _leaves(part)]
