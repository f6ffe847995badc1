"""Gaussian policies at one task's samples, as compiled loops: losses, divergences and their slopes.

The formulas are those of :mod:`~maml_ray.maml.losses`, :mod:`~maml_ray.maml.distributions` and, for
the derivatives, :mod:`~maml_ray.backends.analytic_adaptation`; sums are taken in float64. (By
``np.float64``: ``float`` leaves a float32 what it is in a compiled loop.)

Axes: S samples, A action size; means and actions are flat (S * A,). A slope is a loss's derivative:
with respect to the means, and added up over samples with respect to the log standard deviations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.kernels.jit import jit

Floats = NDArray[np.floating[Any]]

PPO, TRPO, REINFORCE = 0, 1, 2
"""Outer objectives, by number."""
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@jit
def log_probs(mean: Floats, log_std: Floats, actions: Floats, into: Floats) -> None:
    """Log-probabilities (S,) of the actions."""
    size = len(log_std)
    precision = np.exp(-log_std)
    constant = log_std.sum() + size * _HALF_LOG_2PI
    for sample in range(len(into)):
        squares = 0.0
        for a in range(sample * size, (sample + 1) * size):
            noise = (actions[a] - mean[a]) * precision[a - sample * size]
            squares += noise * noise
        into[sample] = -0.5 * squares - constant


@jit
def inner_weights(
    ratio: bool,
    now: Floats,
    collected: Floats,
    advantages: Floats,
    weights: Floats,
    into: Floats,
) -> None:
    """Slope (S,) of the inner loss by each log-probability, of which ``now`` are today's."""
    for sample in range(len(into)):
        gain = advantages[sample] * weights[sample]
        into[sample] = -gain * math.exp(now[sample] - collected[sample]) if ratio else -gain


@jit
def slopes(
    mean: Floats, log_std: Floats, actions: Floats, weight: Floats, by_mean: Floats, by_std: Floats
) -> None:
    """Slopes of a loss, from its slope ``weight`` (S,) by each log-probability."""
    size = len(log_std)
    precision, total = np.exp(-log_std), np.zeros(size)
    for sample in range(len(weight)):
        for column in range(size):
            a = sample * size + column
            noise = (actions[a] - mean[a]) * precision[column]
            by_mean[a] = weight[sample] * noise * precision[column]
            total[column] += weight[sample] * (noise * noise - 1.0)
    by_std[:] = total


@jit
def slopes_along(
    ratio: bool,
    mean: Floats,
    log_std: Floats,
    actions: Floats,
    weight: Floats,
    moved: Floats,
    wider: Floats,
    by_mean: Floats,
    by_std: Floats,
) -> None:
    """Derivatives of the inner loss's slopes, where means move by ``moved`` and stds by ``wider``.

    ``weight`` is that of :func:`inner_weights`, which changes as the ratios do.
    """
    size = len(log_std)
    precision, total, noise, along = (
        np.exp(-log_std),
        np.zeros(size),
        np.empty(size),
        np.empty(size),
    )
    for sample in range(len(weight)):
        each, likelier = np.float64(weight[sample]), 0.0
        for column in range(size):
            a = sample * size + column
            noise[column] = (actions[a] - mean[a]) * precision[column]
            along[column] = -(moved[a] * precision[column] + noise[column] * wider[column])
            likelier += noise[column] * along[column] + wider[column]
        change = -each * likelier if ratio else 0.0
        for column in range(size):
            here, there = noise[column], along[column]
            scaled = change * here + each * there
            by_mean[sample * size + column] = (scaled - each * here * wider[column]) * precision[
                column
            ]
            total[column] += scaled * here + each * here * there - change
    by_std[:] = total


@jit
def kl(
    old_mean: Floats, old_log_std: Floats, mean: Floats, log_std: Floats, weights: Floats
) -> float:
    """Weighted sum over samples of KL(old || new)."""
    size, total = len(log_std), 0.0
    for column in range(size):
        wider = np.float64(log_std[column]) - np.float64(old_log_std[column])
        precision = math.exp(-2.0 * log_std[column])
        constant = wider + 0.5 * (math.exp(-2.0 * wider) - 1.0)
        for sample in range(len(weights)):
            apart = np.float64(old_mean[sample * size + column]) - mean[sample * size + column]
            total += weights[sample] * (constant + 0.5 * apart * apart * precision)
    return total


@jit
def add_kl_slopes(
    coefficient: float,
    old_mean: Floats,
    old_log_std: Floats,
    mean: Floats,
    log_std: Floats,
    weights: Floats,
    by_mean: Floats,
    by_std: Floats,
) -> None:
    """Add the slopes of ``coefficient`` times :func:`kl`."""
    size = len(log_std)
    for column in range(size):
        precision, total = math.exp(-2.0 * log_std[column]), 0.0
        spread = math.exp(2.0 * old_log_std[column]) * precision
        for sample in range(len(weights)):
            a = sample * size + column
            each, apart = coefficient * weights[sample], np.float64(mean[a]) - old_mean[a]
            by_mean[a] += each * apart * precision
            total += each * (1.0 - spread - apart * apart * precision)
        by_std[column] += total


@jit
def fisher_slopes(log_std: Floats, weights: Floats, moved: Floats, wider: Floats) -> None:
    """The second derivative of :func:`kl`, where it is zero, times a change of the policy.

    In the place of the change: of means ``moved`` (S * A,), of log standard deviations ``wider``.
    """
    size, total = len(log_std), weights.sum()
    for column in range(size):
        precision = math.exp(-2.0 * log_std[column])
        for sample in range(len(weights)):
            moved[sample * size + column] *= weights[sample] * precision
        wider[column] *= 2.0 * total


@jit
def outer_loss(
    objective: int,
    clip: float,
    now: Floats,
    collected: Floats,
    advantages: Floats,
    weights: Floats,
    slope: Floats,
) -> float:
    """A task's loss on query data; its ``slope`` (S,) by each log-probability is filled in."""
    loss = 0.0
    for sample in range(len(slope)):
        gain = np.float64(advantages[sample]) * weights[sample]
        if objective == REINFORCE:
            loss -= gain * now[sample]
            slope[sample] = -gain
            continue
        ratio = math.exp(now[sample] - collected[sample])
        value = by_log_prob = gain * ratio
        if objective == PPO:
            clipped = gain * min(max(ratio, 1.0 - clip), 1.0 + clip)
            if clipped < value:
                value, by_log_prob = clipped, 0.0
        loss -= value
        slope[sample] = -by_log_prob
    return loss


@jit
def ratio_errors(
    clip: float, now: Floats, collected: Floats, weights: Floats
) -> tuple[float, float]:
    """Share of the ratios that lie outside the clip range, and the largest error."""
    fraction, largest = 0.0, 0.0
    for sample in range(len(weights)):
        error = abs(math.exp(now[sample] - collected[sample]) - 1.0)
        if error > clip:
            fraction += weights[sample]
        if weights[sample] > 0.0 and not math.isnan(largest) and not error <= largest:
            largest = error  # what is no number is the largest
    return fraction, largest


@jit
def entropy(log_std: Floats, weights: Floats) -> float:
    """In nats, of a policy that is the same Gaussian everywhere but for its mean."""
    nats: float = (log_std.sum() + len(log_std) * (_HALF_LOG_2PI + 0.5)) * weights.sum()
    return nats
