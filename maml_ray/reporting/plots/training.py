"""Plot the metrics of a run: returns, statistics of the meta-update, wall time."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from maml_ray.reporting.plots.style import (
    AFTER,
    BEFORE,
    GRAY,
    OTHER,
    RETURN,
    Rows,
    new_figure,
    style_legend,
    use_integers,
)

_MARKER_LIMIT = 5  # up to so many points are marked: a line through one point is invisible


def run_figures(rows: Rows) -> dict[str, Figure]:
    """Return the plots of a run's training by name; none without ``rows`` of metrics."""
    if not rows:
        return {}
    return {
        "returns": returns_figure(rows),
        "returns_by_time": returns_figure(rows, by="time"),
        "loss": iteration_figure(rows, "Meta-loss", "meta-loss", {"loss": ""}),
        "kl": iteration_figure(
            rows,
            "Change of the policy by an update",
            "KL divergence (nats)",
            {"inner_kl": "on support data", "query_kl": "on query data"},
        ),
        "entropy": iteration_figure(
            rows, "Entropy of the adapted policies", "entropy (nats)", {"entropy": ""}
        ),
        "gradient_norm": iteration_figure(
            rows, "Size of the meta-gradient", "Euclidean norm", {"gradient_norm": ""}
        ),
        "gradient_snr": iteration_figure(
            rows,
            "Signal to noise of the meta-gradient",
            "ratio of signal to noise, over tasks",
            {"gradient_snr": ""},
        ),
        "order_cosine": iteration_figure(
            rows,
            "Second- against first-order meta-gradient",
            "cosine of the angle between them",
            {"order_cosine": ""},
        ),
        "time": time_figure(rows),
    }


def returns_figure(rows: Rows, *, by: str = "steps") -> Figure:
    """Plot return before and after adaptation over environment steps, or by ``"time"``."""
    positions, label = x_axis(rows, by)
    title = "training time" if by == "time" else "environment steps"
    figure, axes = new_figure(f"Return against {title}", label, RETURN)
    curves = (
        ("return_before", "before adaptation", BEFORE),
        ("return_after", "after adaptation", AFTER),
    )
    for key, name, color in curves:
        values = column(rows, key)
        axes.plot(positions, values, color=color, alpha=0.3, linewidth=1)
        axes.plot(
            positions, smooth(values), color=color, linewidth=2, label=name, marker=_marker(rows)
        )
    style_legend(axes)
    return figure


def iteration_figure(rows: Rows, title: str, ylabel: str, keys: Mapping[str, str]) -> Figure:
    """Plot metrics over iterations.

    Args:
        rows: rows of ``metrics.jsonl``.
        title: title of the plot.
        ylabel: label of the vertical axis, with its unit.
        keys: label of each curve by its key in ``rows``.
    """
    figure, axes = new_figure(title, "iteration", ylabel)
    iterations = column(rows, "iteration")
    colors = (AFTER,) if len(keys) == 1 else (BEFORE, AFTER)
    for (key, label), color in zip(keys.items(), colors, strict=True):
        values = column(rows, key)
        is_known = np.isfinite(values)  # some diagnostics are not computed in every iteration
        axes.plot(
            iterations[is_known],
            values[is_known],
            color=color,
            linewidth=1.4,
            label=label,
            marker=_marker(values[is_known]),
        )
    if len(keys) > 1:
        style_legend(axes)
    margin = max(0.5, 0.04 * float(np.ptp(iterations)))
    axes.set_xlim(iterations[0] - margin, iterations[-1] + margin)
    use_integers(axes)
    return figure


def time_figure(rows: Rows) -> Figure:
    """Plot the share of each phase in an iteration's wall time, in percent."""
    figure, axes = new_figure("Where the time went", "iteration", "share of wall time (%)")
    keys = ("collect_s", "adapt_s", "learn_s", "rest_s")
    seconds = np.stack([column(rows, key) for key in keys])
    shares = 100.0 * seconds / np.maximum(seconds.sum(axis=0), 1e-9)
    iterations = column(rows, "iteration")
    # Iteration i spans i to i + 1, so that a single iteration is visible.
    axes.stackplot(
        np.append(iterations, iterations[-1] + 1),
        np.hstack([shares, shares[:, -1:]]),
        labels=[key.removesuffix("_s") for key in keys],
        colors=[AFTER, OTHER, BEFORE, GRAY],
        step="post",
    )
    use_integers(axes)
    axes.set_ylim(0, 100)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Return a centered moving mean of the finite values; the window narrows at the ends.

    It is at most about a third of the values, so that a short run does not look flat.
    """
    half = min(window // 2, len(values) // 6)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """Return the values (n,) of a key in all rows, NaN if missing."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


X_AXES = ("steps", "time", "iterations")
"""What curves can be drawn against."""


def x_axis(rows: Rows, by: str, end: float | None = None) -> tuple[NDArray[np.float64], str]:
    """Return the position (n,) of each row on the horizontal axis, and the label of the axis.

    Args:
        rows: rows of ``metrics.jsonl``.
        by: one of :data:`X_AXES`.
        end: value that decides the unit: environment steps or seconds; by default the last one.
    """
    if by == "iterations":
        return column(rows, "iteration") + 1, "finished iterations"
    values = column(rows, "total_env_steps" if by == "steps" else "elapsed_s")
    end = float(values[-1]) if end is None else end
    if by == "steps":
        scale, unit = (1e6, "million") if end >= 1e6 else (1e3, "thousand")
        return values / scale, f"environment steps ({unit})"
    scale, unit = (3600.0, "hours") if end >= 7200.0 else (60.0, "minutes")
    scale, unit = (scale, unit) if end >= 120.0 else (1.0, "seconds")
    return values / scale, f"training time ({unit})"


def _marker(points: Sized) -> str | None:
    return "o" if len(points) <= _MARKER_LIMIT else None
