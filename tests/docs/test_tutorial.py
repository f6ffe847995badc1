"""The tutorial runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.docs.pages import FOLDER

NOTEBOOK = FOLDER / "tutorial.ipynb"


@pytest.mark.ray
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """A cell that fails raises; the policy that is trained adapts to held-out goals."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.execute(notebook, cwd=str(tmp_path), timeout=240)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    (point,) = (tmp_path / "runs").glob("point-navigation-*")
    rows = json.loads((point / "evaluation.json").read_text())["rows"]
    before, after = (
        next(row["mean"] for row in rows if (row["steps"], row["actions"]) == (steps, "mean"))
        for steps in (0, 1)
    )
    assert after > 0.7 * before > before, "of what was lost before, at least 30% is gained"


def test_the_committed_outputs_are_of_a_whole_run() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < 300_000
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
