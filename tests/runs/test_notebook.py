"""Test what a run shows in a Jupyter notebook, by executing one."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

IMPORTS = """
import sys

sys.path.insert(0, ROOT)
import maml_ray.runs.train
from tests.runs.fake_training import FakeTraining
from tests.small_runs import quick_pictures, settings

maml_ray.runs.train.train_on_ray = FakeTraining()
maml_ray.runs.train.compile_ahead = lambda *callbacks: None
small = settings(run={"iterations": 12}, evaluation={"tasks": 2, "episodes": 2, "video": False})
"""
TRAIN = """
with quick_pictures():
    result = maml_ray.train(small, run_dir="run", observers=[maml_ray.LivePlot()])
"""


def test_a_run_is_one_output_and_a_live_plot_another(tmp_path: Path) -> None:
    imports = IMPORTS.replace("ROOT", repr(str(Path(__file__).parents[2])))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in (imports, TRAIN)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    progress, plot = notebook.cells[1].outputs
    assert progress.output_type == plot.output_type == "display_data"
    assert 'max="20" value="12"' in progress.data["text/html"], "the last state is kept"
    assert "evaluating" not in progress.data["text/plain"]
    assert "image/png" in plot.data
