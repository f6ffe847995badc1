"""The Python code of every page runs, and its settings are valid."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import matplotlib
import pytest
import yaml
from matplotlib import pyplot

import maml_ray
from maml_ray.config.settings import Settings
from maml_ray.maml.losses import OUTER_OBJECTIVES
from tests.docs.pages import FOLDER, Fence, all_pages, fences
from tests.small_runs import trained_run

TESTED_ELSEWHERE = (
    "observers.md",  # test_observers.py, without training and with stand-ins
    "sweeps.md",  # tests/runs/test_tune.py: it takes a minute
)
NOTEBOOK = FOLDER / "tutorial.ipynb"
TRAINING = 'maml_ray.train("point-navigation", iterations=10, seed=1)'
"""The call of the README, which the tutorial has too."""
FILE_NAME = re.compile(r"# (\w+)\.py\n")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to adapt a little, in a few seconds."""
    small = [
        "run.name=demo",
        "run.iterations=6",
        "meta_batch.tasks=8",
        "meta_batch.episodes=8",
        "outer.tasks_per_minibatch=4",
        "evaluation.tasks=4",
        "evaluation.episodes=4",
    ]
    settings = maml_ray.load_settings(preset="point-navigation", overrides=small)
    return trained_run(settings, tmp_path_factory.mktemp("docs") / "demo").path


@pytest.fixture
def in_folder_with_demo(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Change to an empty folder that has ``runs/demo``; undo what is plotted and registered."""
    shutil.copytree(demo_run, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    matplotlib.use("Agg")
    with mock.patch.dict(OUTER_OBJECTIVES):
        yield
    pyplot.close("all")


def pages_with_code() -> Iterator[Any]:
    """Yield the blocks of each page that has Python code."""
    for page in all_pages():
        blocks = list(fences(page, "python"))
        if blocks and page.suffix == ".md" and page.name not in TESTED_ELSEWHERE:
            yield pytest.param(blocks, id=page.name)


@pytest.fixture
def trained_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``maml_ray.train`` return the run in ``runs/demo``, without starting Ray.

    The tutorial, which has the same call, trains (test_tutorial.py).
    """
    called = inspect.signature(maml_ray.train)

    def train(*arguments: Any, **keywords: Any) -> Any:
        called.bind(*arguments, **keywords)
        return SimpleNamespace(load=lambda: maml_ray.load("runs/demo"))

    monkeypatch.setattr(maml_ray, "train", train)


@pytest.mark.usefixtures("in_folder_with_demo", "trained_before")
@pytest.mark.parametrize("blocks", list(pages_with_code()))
def test_the_code_of_a_page_runs(blocks: list[Fence], monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace; a block that begins with ``# name.py`` is that file too."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if file := FILE_NAME.match(block.code):
            Path(f"{file[1]}.py").write_text(block.code, encoding="utf-8")
            monkeypatch.delitem(sys.modules, file[1], raising=False)
        # Tracebacks show the page and its line.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(block.page), "exec"), names)


def test_the_training_of_the_readme_is_that_of_the_tutorial() -> None:
    (readme,) = (page for page in all_pages() if page.name == "README.md")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert any(TRAINING in block.code for block in fences(readme, "python"))
    assert any(TRAINING in "".join(cell["source"]) for cell in cells)


def yaml_blocks() -> list[Fence]:
    return [block for page in all_pages() for block in fences(page, "yaml")]


@pytest.mark.parametrize("block", yaml_blocks(), ids=str)
def test_settings_of_a_page_are_valid(block: Fence, tmp_path: Path) -> None:
    """Of blocks with any section of the settings; others are manifests for other programs."""
    data = yaml.safe_load(block.code)
    if set(data) & set(Settings.model_fields):
        (tmp_path / "deploy.yaml").write_text(block.code, encoding="utf-8")
        maml_ray.load_settings(tmp_path / "deploy.yaml")
