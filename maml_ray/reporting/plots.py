"""Plots of a run: learning curves, what the meta-update did, where the time went."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from maml_ray.persistence.run_dir import RunDir

Rows = Sequence[Mapping[str, Any]]
# Okabe and Ito's palette: told apart by color-blind people too.
_BEFORE, _AFTER, _OTHER, _GRAY = "#E69F00", "#0072B2", "#009E73", "#999999"
COLORS = (_AFTER, _BEFORE, _OTHER, "#CC79A7", "#56B4E9", "#D55E00", _GRAY)
_DPI = 120
_FEW = 5  # so few points get a mark each: a line through one point is invisible


def write_plots(rows: Rows, evaluation: Mapping[str, Any] | None, folder: RunDir) -> list[Path]:
    """Draw all plots as PNG files.

    Args:
        rows: of ``metrics.jsonl``.
        evaluation: the content of ``evaluation.json``, if there is one.
        folder: of the run.

    Returns:
        Their paths: returns, meta-update and time where there are rows, and the evaluation.
    """
    figures: dict[str, Figure] = {}
    if rows:
        figures |= {
            "returns.png": returns_figure(rows),
            "meta_update.png": meta_update_figure(rows),
            "time.png": time_figure(rows),
        }
    if evaluation is not None:
        figures["evaluation.png"] = evaluation_figure(evaluation)
    if not figures:
        return []
    folder.plots.mkdir(parents=True, exist_ok=True)
    paths = [folder.plots / name for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure aside and put it in place: whatever lies at ``path`` is not written through.

    Raises:
        OSError: the storage failed.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        figure.savefig(aside, dpi=_DPI)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def returns_figure(rows: Rows) -> Figure:
    """Return before and after adaptation against environment steps."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = column(rows, "total_env_steps") / 1e6
    curves = (
        ("return_before", "before adaptation", _BEFORE),
        ("return_after", "after one round of adaptation", _AFTER),
    )
    for key, label, color in curves:
        values = column(rows, key)
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(
            steps, smooth(values), color=color, linewidth=2, label=label, marker=_marker(rows)
        )
    axes.set_xlabel("environment steps (million)")
    axes.set_ylabel("mean return of an episode")
    axes.legend(frameon=False)
    style_axes(axes)
    return figure


def meta_update_figure(rows: Rows) -> Figure:
    """Meta-loss, KL, entropy, and the meta-gradient's norm, noise and order, one panel each."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    panels: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
        ("meta-loss", (("loss", "", _AFTER),)),
        ("norm of the meta-gradient", (("gradient_norm", "", _AFTER),)),
        (
            "KL of the update (nats)",
            (("inner_kl", "support data", _BEFORE), ("query_kl", "query data", _AFTER)),
        ),
        ("entropy of the policy (nats)", (("entropy", "", _AFTER),)),
        ("signal to noise of the meta-gradient", (("gradient_snr", "", _AFTER),)),
        ("cosine of second and first order", (("order_cosine", "", _AFTER),)),
    )
    iterations = column(rows, "iteration")
    for axes, (title, curves) in zip(figure.subplots(3, 2).flat, panels, strict=True):
        for key, label, color in curves:
            values = column(rows, key)
            told = np.isfinite(values)  # some are looked at every so often only
            axes.plot(
                iterations[told],
                values[told],
                color=color,
                linewidth=1.2,
                label=label,
                marker=_marker(values[told]),
            )
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
        axes.set_title(title, fontsize=10)
        _iterations(axes)
        style_axes(axes)
    return figure


def time_figure(rows: Rows) -> Figure:
    """Where each iteration's wall time went, in shares."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    keys = ("collect_s", "adapt_s", "learn_s", "rest_s")
    seconds = np.stack([column(rows, key) for key in keys])
    shares = 100.0 * seconds / np.maximum(seconds.sum(axis=0), 1e-9)
    iterations = column(rows, "iteration")
    # Each iteration is as wide as it is, from its number to the next one's: one alone is seen too.
    axes.stackplot(
        np.append(iterations, iterations[-1] + 1),
        np.hstack([shares, shares[:, -1:]]),
        labels=[key.removesuffix("_s") for key in keys],
        colors=[_AFTER, _OTHER, _BEFORE, _GRAY],
        step="post",
    )
    _iterations(axes)
    axes.set_ylabel("share of wall time (%)")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    style_axes(axes)
    return figure


def evaluation_figure(evaluation: Mapping[str, Any]) -> Figure:
    """Return against adaptation steps, with intervals, of the policy and of those beside it."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    trained = {"meta-trained": evaluation["rows"], **evaluation.get("beside", {})}
    for place, (name, rows) in enumerate(trained.items()):
        sampled = [row for row in rows if row["actions"] == "stochastic"]
        steps = [row["steps"] for row in sampled]
        means = np.array([row["mean"] for row in sampled])
        reach = np.abs(np.array([[row["low"], row["high"]] for row in sampled]).T - means)
        axes.errorbar(
            steps,
            means,
            yerr=reach,
            label=name,
            color=COLORS[place % len(COLORS)],
            marker="o",
            capsize=4,
            linewidth=2,
        )
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel("mean return of an episode")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(trained) > 1:
        axes.legend(frameon=False)
    style_axes(axes)
    return figure


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Centered moving mean over at most ``window`` finite values, narrower at the ends."""
    half = window // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """One figure of every row (n,), NaN where it is not there."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _marker(points: Sized) -> str | None:
    return "o" if len(points) <= _FEW else None


def _iterations(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def style_axes(axes: Axes) -> None:
    """Axes with no more ink than they need."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
