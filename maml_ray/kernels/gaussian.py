"""Compute log-probabilities, divergences and their derivatives for diagonal Gaussian policies.

The formulas are those of :mod:`~maml_ray.maml.losses` and :mod:`~maml_ray.maml.distributions`. Sums
are accumulated in float64 (by ``np.float64``: in compiled code ``float(x)`` of a float32 stays a
float32).

Axes: S samples, A action size. Means and actions are flat, (S * A,); sample weights,
log-probabilities and advantages are (S,). Gradients with respect to ``log_std`` (A,), in float64,
are added to: the samples may come in blocks.
"""

from __future__ import annotations

import math

import numpy as np

from maml_ray.kernels.jit import jit
from maml_ray.kernels.types import Floats, Gaussian

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@jit
def log_probs(mean: Floats, log_std: Floats, actions: Floats, out: Floats) -> None:
    """Compute log-probabilities (S,) of actions, summed over action dimensions, into ``out``."""
    size = len(log_std)
    precision = np.exp(-log_std)
    constant = log_std.sum() + size * _HALF_LOG_2PI
    for sample in range(len(out)):
        squares = 0.0
        for a in range(sample * size, (sample + 1) * size):
            noise = (actions[a] - mean[a]) * precision[a - sample * size]
            squares += noise * noise
        out[sample] = -0.5 * squares - constant


@jit
def inner_loss_grads(
    log_prob: Floats,
    behavior_log_prob: Floats,
    advantages: Floats,
    weights: Floats,
    out: Floats,
) -> None:
    """Compute the gradient (S,) of the inner loss with respect to log-probabilities, into ``out``.

    It is ``-w A exp(log_prob - behavior_log_prob)`` whether the loss is that of ratios or of
    log-probabilities, which are weighted by the ratios as constants.
    """
    for sample in range(len(out)):
        gain = advantages[sample] * weights[sample]
        out[sample] = -gain * math.exp(log_prob[sample] - behavior_log_prob[sample])


@jit
def log_prob_vjp(
    mean: Floats,
    log_std: Floats,
    actions: Floats,
    log_prob_grads: Floats,
    mean_grads: Floats,
    log_std_grads: Floats,
) -> None:
    """Pull gradients (S,) of log-probabilities back to means (S * A,) and ``log_std`` (A,)."""
    size = len(log_std)
    precision = np.exp(-log_std)
    for sample in range(len(log_prob_grads)):
        for column in range(size):
            a = sample * size + column
            noise = (actions[a] - mean[a]) * precision[column]
            mean_grads[a] = log_prob_grads[sample] * noise * precision[column]
            log_std_grads[column] += log_prob_grads[sample] * (noise * noise - 1.0)


@jit
def inner_loss_hvp(
    ratio: bool,
    mean: Floats,
    log_std: Floats,
    actions: Floats,
    log_prob_grads: Floats,
    mean_tangents: Floats,
    log_std_tangents: Floats,
    mean_grads: Floats,
    log_std_grads: Floats,
) -> None:
    """Differentiate :func:`log_prob_vjp` of the inner loss along a tangent of the policy.

    Args:
        ratio: the inner loss is that of ratios, whose ``log_prob_grads`` change with the ratios.
        mean, log_std, actions: where.
        log_prob_grads: (S,) from :func:`inner_loss_grads`.
        mean_tangents, log_std_tangents: the direction, (S * A,) and (A,).
        mean_grads: filled with the tangents of the gradients, of the same shape.
        log_std_grads: (A,), added to.
    """
    size = len(log_std)
    precision, noise, along = np.exp(-log_std), np.empty(size), np.empty(size)
    for sample in range(len(log_prob_grads)):
        grad, log_prob_tangent = np.float64(log_prob_grads[sample]), 0.0
        for column in range(size):
            a = sample * size + column
            noise[column] = (actions[a] - mean[a]) * precision[column]
            along[column] = -(
                mean_tangents[a] * precision[column] + noise[column] * log_std_tangents[column]
            )
            log_prob_tangent += noise[column] * along[column] + log_std_tangents[column]
        change = -grad * log_prob_tangent if ratio else 0.0
        for column in range(size):
            here, there = noise[column], along[column]
            scaled = change * here + grad * there
            mean_grads[sample * size + column] = (
                scaled - grad * here * log_std_tangents[column]
            ) * precision[column]
            log_std_grads[column] += scaled * here + grad * here * there - change


@jit
def kl(
    old_mean: Floats, old_log_std: Floats, mean: Floats, log_std: Floats, weights: Floats
) -> float:
    """Return the weighted sum over samples of KL(old || new), in nats."""
    size, total = len(log_std), 0.0
    for column in range(size):
        log_ratio = np.float64(log_std[column]) - np.float64(old_log_std[column])
        precision = math.exp(-2.0 * log_std[column])
        constant = log_ratio + 0.5 * (math.exp(-2.0 * log_ratio) - 1.0)
        for sample in range(len(weights)):
            distance = np.float64(old_mean[sample * size + column]) - mean[sample * size + column]
            total += weights[sample] * (constant + 0.5 * distance * distance * precision)
    return total


@jit
def ratio_stats(
    clip: float, log_prob: Floats, behavior_log_prob: Floats, weights: Floats
) -> tuple[float, float]:
    """Return the share of ratios outside ``1 +- clip``, and the largest ``|ratio - 1|``."""
    fraction, largest = 0.0, 0.0
    for sample in range(len(weights)):
        error = abs(math.exp(log_prob[sample] - behavior_log_prob[sample]) - 1.0)
        if error > clip:
            fraction += weights[sample]
        if weights[sample] > 0.0 and not math.isnan(largest) and not error <= largest:
            largest = error  # NaN counts as the largest
    return fraction, largest


@jit
def entropy(log_std: Floats, weights: Floats) -> float:
    """Return the weighted sum over samples of the entropy, in nats."""
    nats: float = (log_std.sum() + len(log_std) * (_HALF_LOG_2PI + 0.5)) * weights.sum()
    return nats


@jit
def add_kl_grads(
    coefficient: float,
    old: Gaussian[Floats],
    new: Gaussian[Floats],
    weights: Floats,
    mean_grads: Floats,
    log_std_grads: Floats,
) -> None:
    """Add the gradients of ``coefficient * kl`` by ``new`` to ``mean_grads``, ``log_std_grads``."""
    size = len(new.log_std)
    for column in range(size):
        precision, total = math.exp(-2.0 * new.log_std[column]), 0.0
        scale = math.exp(2.0 * old.log_std[column]) * precision
        for sample in range(len(weights)):
            a = sample * size + column
            weight = coefficient * weights[sample]
            distance = np.float64(new.mean[a]) - old.mean[a]
            mean_grads[a] += weight * distance * precision
            total += weight * (1.0 - scale - distance * distance * precision)
        log_std_grads[column] += total


@jit
def multiply_by_fisher(log_std: Floats, weights: Floats, mean_tangents: Floats) -> None:
    """Multiply tangents of means by the Hessian of :func:`kl` at zero, in place.

    That of ``log_std`` is twice the sum of the weights.
    """
    size = len(log_std)
    precision = np.exp(-2.0 * log_std)
    for sample in range(len(weights)):
        for column in range(size):
            mean_tangents[sample * size + column] *= weights[sample] * precision[column]
