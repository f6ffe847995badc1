"""Plot a run: returns, statistics of the meta-update, wall time, evaluation."""

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
# The palette of Okabe and Ito, which color-blind people can distinguish.
_BEFORE, _AFTER, _OTHER, _GRAY = "#E69F00", "#0072B2", "#009E73", "#999999"
COLORS = (_AFTER, _BEFORE, _OTHER, "#CC79A7", "#56B4E9", "#D55E00", _GRAY)
_DPI = 120
_MARKER_LIMIT = 5  # up to so many points are marked: a line through one point is invisible


def write_plots(rows: Rows, evaluation: Mapping[str, Any] | None, run_dir: RunDir) -> list[Path]:
    """Write all plots of a run as PNG files.

    Args:
        rows: rows of ``metrics.jsonl``; if empty, only the evaluation is plotted.
        evaluation: content of ``evaluation.json``; None if there is none.
        run_dir: run directory.

    Returns:
        Paths of the files written.
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
    run_dir.plots.mkdir(parents=True, exist_ok=True)
    paths = [run_dir.plots / name for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically; a link at ``path`` is replaced, not followed.

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


def returns_figure(rows: Rows) -> Figure:
    """Plot return before and after adaptation over environment steps."""
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
    """Plot meta-loss, KL, entropy, and norm, SNR and order cosine of the meta-gradient."""
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
            is_known = np.isfinite(values)  # some diagnostics are not computed in every iteration
            axes.plot(
                iterations[is_known],
                values[is_known],
                color=color,
                linewidth=1.2,
                label=label,
                marker=_marker(values[is_known]),
            )
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
        axes.set_title(title, fontsize=10)
        _label_iterations(axes)
        style_axes(axes)
    return figure


def time_figure(rows: Rows) -> Figure:
    """Plot the share of each phase in an iteration's wall time, in percent."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    keys = ("collect_s", "adapt_s", "learn_s", "rest_s")
    seconds = np.stack([column(rows, key) for key in keys])
    shares = 100.0 * seconds / np.maximum(seconds.sum(axis=0), 1e-9)
    iterations = column(rows, "iteration")
    # Iteration i spans i to i + 1, so that a single iteration is visible.
    axes.stackplot(
        np.append(iterations, iterations[-1] + 1),
        np.hstack([shares, shares[:, -1:]]),
        labels=[key.removesuffix("_s") for key in keys],
        colors=[_AFTER, _OTHER, _BEFORE, _GRAY],
        step="post",
    )
    _label_iterations(axes)
    axes.set_ylabel("share of wall time (%)")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    style_axes(axes)
    return figure


def evaluation_figure(evaluation: Mapping[str, Any]) -> Figure:
    """Plot return over adaptation steps, with 95% intervals, of the policy and baselines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    policies = {"meta-trained": evaluation["rows"], **evaluation.get("beside", {})}
    for index, (name, rows) in enumerate(policies.items()):
        stochastic = [row for row in rows if row["actions"] == "stochastic"]
        steps = [row["steps"] for row in stochastic]
        means = np.array([row["mean"] for row in stochastic])
        errors = np.abs(np.array([[row["low"], row["high"]] for row in stochastic]).T - means)
        axes.errorbar(
            steps,
            means,
            yerr=errors,
            label=name,
            color=COLORS[index % len(COLORS)],
            marker="o",
            capsize=4,
            linewidth=2,
        )
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel("mean return of an episode")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(policies) > 1:
        axes.legend(frameon=False)
    style_axes(axes)
    return figure


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Return a centered moving mean of the finite values; the window narrows at the ends."""
    half = window // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """Return the values (n,) of a key in all rows, NaN if missing."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _marker(points: Sized) -> str | None:
    return "o" if len(points) <= _MARKER_LIMIT else None


def _label_iterations(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def style_axes(axes: Axes) -> None:
    """Hide the upper and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
