"""Plots of a run: learning curves, what the meta-update did, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from maml_ray.run_folder import RunFolder

Rows = Sequence[Mapping[str, Any]]
# Okabe and Ito's palette: told apart by colour-blind people too.
_BEFORE, _AFTER, _OTHER, _GREY = "#E69F00", "#0072B2", "#009E73", "#999999"
_DPI = 120


def write_plots(rows: Rows, folder: RunFolder) -> list[Path]:
    """Draw all plots of ``rows`` (of ``metrics.jsonl``) as PNG files; none without rows.

    Returns:
        Their paths: returns, meta-update, time.
    """
    if not rows:
        return []
    folder.plots.mkdir(parents=True, exist_ok=True)
    figures = {
        "returns.png": returns_figure(rows),
        "meta_update.png": meta_update_figure(rows),
        "time.png": time_figure(rows),
    }
    paths = [folder.plots / name for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=_DPI)
    return paths


def returns_figure(rows: Rows) -> Figure:
    """Return before and after adaptation against environment steps."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = _column(rows, "total_env_steps") / 1e6
    curves = (
        ("return_before", "before adaptation", _BEFORE),
        ("return_after", "after one round of adaptation", _AFTER),
    )
    for key, label, colour in curves:
        values = _column(rows, key)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, smoothed(values), color=colour, linewidth=2, label=label)
    axes.set_xlabel("environment steps (million)")
    axes.set_ylabel("mean return of an episode")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def meta_update_figure(rows: Rows) -> Figure:
    """Meta-loss, gradient norm, KL and entropy, one panel each."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panels = (
        ("loss", "meta-loss"),
        ("gradient_norm", "norm of the meta-gradient"),
        ("query_kl", "KL of the update on query data (nats)"),
        ("entropy", "entropy of the policy (nats)"),
    )
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        axes.plot(_column(rows, "iteration"), _column(rows, key), color=_AFTER, linewidth=1.2)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("iteration")
        _plain(axes)
    return figure


def time_figure(rows: Rows) -> Figure:
    """Where each iteration's wall time went, in shares."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    keys = ("collect_s", "adapt_s", "learn_s", "rest_s")
    seconds = np.stack([_column(rows, key) for key in keys])
    axes.stackplot(
        _column(rows, "iteration"),
        100.0 * seconds / np.maximum(seconds.sum(axis=0), 1e-9),
        labels=[key.removesuffix("_s") for key in keys],
        colors=[_AFTER, _OTHER, _BEFORE, _GREY],
    )
    axes.set_xlabel("iteration")
    axes.set_ylabel("share of wall time (%)")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _plain(axes)
    return figure


def smoothed(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Centred moving mean over at most ``window`` finite values, narrower at the ends."""
    half = window // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def _column(rows: Rows, key: str) -> NDArray[np.float64]:
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
