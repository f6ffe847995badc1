from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.plots.evaluation import tasks_figure
from maml_ray.reporting.plots.style import new_figure
from maml_ray.reporting.plots.training import run_figures
from maml_ray.reporting.svg import draw_svg, write_plots
from tests.reporting.conftest import MakeRecord

_SVG = "{http://www.w3.org/2000/svg}"


def test_title_and_labels_are_text_in_the_colors_of_the_page() -> None:
    figure, _ = new_figure("A <title> & more", "the time (s)", "a label")
    element = ElementTree.fromstring(draw_svg(figure, "plot"))
    assert element.findtext(f"{_SVG}title") == "A <title> & more"
    assert element.get("aria-label") == "A <title> & more"
    texts = {text.text: text.get("style", "") for text in element.iter(f"{_SVG}text")}
    assert "the time (s)" in texts
    assert all("fill: var(--ink, #1c2430)" in style for style in texts.values())
    assert all("system-ui, sans-serif" in style for style in texts.values())
    assert not any("DejaVu" in style for style in texts.values())


def test_names_of_tasks_are_text_and_not_formulas() -> None:
    names = [r"$\\nothing{$", "<b>bold</b>"]
    rows = [
        {"task": name, "steps": step, "actions": "stochastic", "mean": 1.0, "low": 0.0, "high": 2.0}
        for name in names
        for step in (0, 1)
    ]
    figure = tasks_figure({"rows_by_task": rows})
    assert figure is not None
    element = ElementTree.fromstring(draw_svg(figure, "tasks"))
    assert set(names) <= {text.text for text in element.iter(f"{_SVG}text")}


def test_nothing_has_a_color_that_the_page_does_not_set(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(4)]
    for name, figure in run_figures(rows).items():
        text = draw_svg(figure, name)
        colors = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", text)
        assert not re.findall(r"(?:fill|stroke): (?!none)[#\w]+", colors), name


def test_ids_differ_between_plots_and_references_lead_to_them(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(4)]
    seen: set[str] = set()
    for name, figure in run_figures(rows).items():
        text = draw_svg(figure, name)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
        seen |= set(ids)


def test_the_same_rows_give_the_same_picture(record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(4)]
    first, second = (draw_svg(run_figures(rows)["loss"], "loss") for _ in range(2))
    assert first == second


def test_plots_are_files_that_stand_alone(tmp_path: Path, record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(4)]
    rows[3]["loss"] = None  # what was not finite
    plots = write_plots(rows, None, RunDir(tmp_path))
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(plots)
    for name, plot in plots.items():
        assert (tmp_path / f"plots/{name}.svg").read_text() == plot
        assert ElementTree.fromstring(plot).tag == f"{_SVG}svg"


def test_without_metrics_and_evaluation_nothing_is_written(tmp_path: Path) -> None:
    assert write_plots([], None, RunDir(tmp_path)) == {}
    assert not list(tmp_path.iterdir())
