"""Draw figures as SVG for a page: text in the page's font, colors that follow its theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from maml_ray.common.safe_files import write_atomic
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.plots.evaluation import evaluation_figures
from maml_ray.reporting.plots.style import COLORS, GRID, INK, Rows
from maml_ray.reporting.plots.training import run_figures

_VARIABLES = {INK.lower(): "--ink", GRID.lower(): "--line"} | {
    color.lower(): f"--series-{number}" for number, color in enumerate(COLORS, 1)
}
"""CSS variable that replaces a color; where none is defined, the color is used."""
_COLOR = re.compile("|".join(_VARIABLES))
_FONTS = re.compile(r"'DejaVu Sans'[^;\"]*sans-serif")
_REFERENCE = re.compile(r'(\bid="|xlink:href="#|url\(#)')
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def write_plots(
    rows: Rows, evaluation: Mapping[str, object] | None, run_dir: RunDir
) -> dict[str, str]:
    """Write all plots of a run as SVG files.

    Args:
        rows: rows of ``metrics.jsonl``; if empty, only the evaluation is plotted.
        evaluation: content of ``evaluation.json``; None if there is none.
        run_dir: run directory.

    Returns:
        ``svg`` elements by name of the plot.

    Raises:
        OSError: a file cannot be written.
    """
    figures = run_figures(rows) | (evaluation_figures(evaluation) if evaluation else {})
    plots = {name: draw_svg(figure, name) for name, figure in figures.items()}
    if plots:
        run_dir.plots.mkdir(parents=True, exist_ok=True)
    for name, plot in plots.items():
        write_atomic(run_dir.plots / f"{name}.svg", plot)
    return plots


def draw_svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``svg`` element that can stand in a page or, alone, in a file.

    Args:
        figure: figure whose first axes have the title.
        name: prefix of all ids in the element, which must be unique in a page.
    """
    buffer = io.BytesIO()
    # Text stays text, and ids are the same every time.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue().decode("utf-8")
    text = _METADATA.sub("", text[text.find("<svg") :])
    text = _REFERENCE.sub(rf"\g<1>{name}-", text)
    text = _FONTS.sub("system-ui, sans-serif", text)
    text = _COLOR.sub(lambda match: f"var({_VARIABLES[match[0]]}, {match[0]})", text)
    title = escape(figure.axes[0].get_title(loc="left"))
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return text.replace(">", f"><title>{title}</title>", 1)
