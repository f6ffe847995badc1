"""Define the style that all plots share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Rows = Sequence[Mapping[str, Any]]
"""Rows of metrics or of an evaluation."""
# Color-blind people can distinguish the colors of Okabe and Ito.
BEFORE, AFTER, OTHER, GRAY = "#D55E00", "#0072B2", "#009E73", "#888888"
COLORS = (AFTER, BEFORE, OTHER, "#CC79A7", "#56B4E9", "#E69F00", GRAY)
INK, GRID = "#1c2430", "#d9dee5"
"""Colors of text and axes, and of grid lines."""
SIZE = (5.0, 3.3)  # inches: text of 9 points stays readable where a telephone is 390 pixels wide
_FONT_SIZE = 9
_DPI = 150
RETURN = "mean return of an episode"
"""Label of axes."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically as PNG; a link at ``path`` is replaced, not followed.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        figure.savefig(temporary, dpi=_DPI)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_figure(
    title: str, xlabel: str, ylabel: str, size: tuple[float, float] = SIZE
) -> tuple[Figure, Axes]:
    """Return a figure in the style of all plots, with its axes.

    Args:
        title: title of the plot.
        xlabel, ylabel: labels of the axes, with their units.
        size: width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=_FONT_SIZE + 1.5, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=_FONT_SIZE, color=INK)
    axes.set_ylabel(ylabel, fontsize=_FONT_SIZE, color=INK)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Hide the upper and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=_FONT_SIZE)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def style_legend(axes: Axes, **keywords: Any) -> None:
    """Add a legend without a frame."""
    legend = axes.legend(frameon=False, fontsize=_FONT_SIZE, labelcolor=INK, **keywords)
    legend.get_title().set(color=INK, fontsize=_FONT_SIZE)


def literal(text: str, max_length: int = 40) -> str:
    """Return text that Matplotlib does not read as mathematics, shortened."""
    shown = text if len(text) <= max_length else f"{text[: max_length - 3]}..."
    return shown.replace("$", r"\$")


def use_integers(axes: Axes) -> None:
    """Put the marks of the horizontal axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
