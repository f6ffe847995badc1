"""One task's inner steps as a compiled loop, and what differentiating through them takes.

Axes: K inner steps, S samples of a phase, D observation size, A action size, H sizes of the hidden
layers together, P parameters of the network, Q = P + A of the policy, whose last are the log
standard deviations. Arrays of samples are flat; see :mod:`~maml_ray.kernels.mlp`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maml_ray.kernels import gaussian, mlp
from maml_ray.kernels.gaussian import Floats
from maml_ray.kernels.jit import jit
from maml_ray.kernels.mlp import Sizes


class Rules(NamedTuple):
    """What is asked for.

    Attributes:
        sizes: of the network's layers.
        relu: whether that is the activation.
        floor: of the log standard deviations.
        ratio: whether the inner objective is the ratio; else the log-probability.
        l2: the inner loop's.
        objective: the outer one, by its number in :mod:`~maml_ray.kernels.gaussian`.
        clip: the outer loss's.
        kl: weight on the mean inner KL in the outer loss.
        second: whether the inner steps are differentiated through.
    """

    sizes: Sizes
    relu: bool
    floor: float
    ratio: bool
    l2: float
    objective: int
    clip: float
    kl: float
    second: bool


class Data(NamedTuple):
    """Samples of one phase; or (K, ...) of the support phases.

    Attributes:
        observations: (S * D,).
        actions: (S * A,).
        log_probs, advantages, weights: (S,).
    """

    observations: Floats
    actions: Floats
    log_probs: Floats
    advantages: Floats
    weights: Floats


class Steps(NamedTuple):
    """Inner steps as they were taken.

    Attributes:
        thetas: (K + 1, Q) before each step, and after the last.
        gradients: (K, Q) of the inner losses.
        hidden, slopes: (K, S * H) of the network, passing forward and back.
        means, by_mean: (K, S * A) of the policies, and the losses' slopes by them.
        weights: (K, S) the losses' slopes by each log-probability.
    """

    thetas: Floats
    gradients: Floats
    hidden: Floats
    slopes: Floats
    means: Floats
    by_mean: Floats
    weights: Floats


@jit
def steps_taken(
    rules: Rules,
    theta: Floats,
    rates: Floats,
    support: Data,
) -> Steps:
    """Adapt ``theta`` (Q,) to support data (K, ...), at ``rates`` (Q,)."""
    count, samples = support.weights.shape
    kind, outputs, hidden = theta.dtype, rules.sizes[-1], samples * rules.sizes[1:-1].sum()
    network = len(theta) - outputs
    steps = Steps(
        np.empty((count + 1, len(theta)), kind),
        np.empty((count, len(theta)), kind),
        np.empty((count, hidden), kind),
        np.empty((count, hidden), kind),
        np.empty((count, samples * outputs), kind),
        np.empty((count, samples * outputs), kind),
        np.empty((count, samples), kind),
    )
    steps.thetas[0] = theta
    now = np.empty(samples, kind)
    for k in range(count):
        here, gradient, mean = steps.thetas[k], steps.gradients[k], steps.means[k]
        log_std, by_mean = floored(rules, here), steps.by_mean[k]
        mlp.forward(
            rules.sizes, rules.relu, here[:network], support.observations[k], steps.hidden[k], mean
        )
        gaussian.log_probs(mean, log_std, support.actions[k], now)
        gaussian.inner_weights(
            rules.ratio,
            now,
            support.log_probs[k],
            support.advantages[k],
            support.weights[k],
            steps.weights[k],
        )
        gaussian.slopes(
            mean, log_std, support.actions[k], steps.weights[k], by_mean, gradient[network:]
        )
        mlp.backward(
            rules.sizes,
            rules.relu,
            here[:network],
            support.observations[k],
            steps.hidden[k],
            by_mean,
            steps.slopes[k],
            gradient[:network],
        )
        hold(rules, here, gradient)
        for place in range(len(theta)):
            gradient[place] += 2.0 * rules.l2 * here[place]
            steps.thetas[k + 1, place] = here[place] - rates[place] * gradient[place]
    return steps


@jit
def policies(
    rules: Rules,
    theta: Floats,
    rates: Floats,
    support: Data,
    query_observations: Floats,
    means: Floats,
    log_stds: Floats,
) -> None:
    """Means (K + 1, S * A) and log standard deviations (K + 1, A) of the policies on the way.

    Of those before each inner step at its support data, and of the adapted one at the query data.
    """
    steps = steps_taken(rules, theta, rates, support)
    count, outputs = len(steps.weights), rules.sizes[-1]
    means[:count] = steps.means
    hidden = room_for_hidden(rules, theta, means.shape[1] // outputs)
    network = len(theta) - outputs
    mlp.forward(
        rules.sizes,
        rules.relu,
        steps.thetas[-1][:network],
        query_observations,
        hidden,
        means[count],
    )
    for k in range(count + 1):
        log_stds[k] = floored(rules, steps.thetas[k])


@jit
def hessian_product(rules: Rules, steps: Steps, support: Data, k: int, direction: Floats) -> Floats:
    """The Hessian of inner loss ``k`` times a direction (Q,)."""
    before, by_mean, change = pushed(rules, steps, support, k, direction)
    bent(rules, steps, support, k, direction, before, by_mean, change)
    return change


@jit
def pushed(
    rules: Rules, steps: Steps, support: Data, k: int, direction: Floats
) -> tuple[Floats, Floats, Floats]:
    """What a direction (Q,) does at inner step ``k``: to the network, and to the loss's slopes.

    These are (S * A,) by the means, and by the log standard deviations at the end of (Q,) numbers.
    """
    theta, mean = steps.thetas[k], steps.means[k]
    network = len(theta) - rules.sizes[-1]
    before, moved = np.empty_like(steps.hidden[k]), np.empty_like(mean)
    by_mean, change = np.empty_like(mean), np.empty_like(theta)
    mlp.forward_jvp(
        rules.sizes,
        rules.relu,
        theta[:network],
        support.observations[k],
        steps.hidden[k],
        direction[:network],
        before,
        moved,
    )
    wider = direction.copy()
    hold(rules, theta, wider)
    gaussian.slopes_along(
        rules.ratio,
        mean,
        floored(rules, theta),
        support.actions[k],
        steps.weights[k],
        moved,
        wider[network:],
        by_mean,
        change[network:],
    )
    return before, by_mean, change


@jit
def bent(
    rules: Rules,
    steps: Steps,
    support: Data,
    k: int,
    direction: Floats,
    before: Floats,
    by_mean: Floats,
    change: Floats,
) -> None:
    """The Hessian of inner loss ``k`` times a direction, from what :func:`pushed` gave."""
    theta = steps.thetas[k]
    network = len(theta) - rules.sizes[-1]
    mlp.backward_jvp(
        rules.sizes,
        rules.relu,
        theta[:network],
        support.observations[k],
        steps.hidden[k],
        steps.by_mean[k],
        steps.slopes[k],
        direction[:network],
        before,
        by_mean,
        change[:network],
    )
    hold(rules, theta, change)
    for place in range(len(theta)):
        change[place] += 2.0 * rules.l2 * direction[place]


@jit
def to_gradient(
    rules: Rules,
    theta: Floats,
    observations: Floats,
    hidden: Floats,
    by_mean: Floats,
    gradient: Floats,
) -> None:
    """Slopes by the means (S * A,) to a gradient (Q,), through the network and the floor.

    Those by log standard deviations, its last A, are there.
    """
    network = len(theta) - rules.sizes[-1]
    mlp.backward(
        rules.sizes,
        rules.relu,
        theta[:network],
        observations,
        hidden,
        by_mean,
        np.empty_like(hidden),
        gradient[:network],
    )
    hold(rules, theta, gradient)


@jit
def floored(rules: Rules, theta: Floats) -> Floats:
    """The log standard deviations (A,)."""
    return np.maximum(theta[len(theta) - rules.sizes[-1] :], theta.dtype.type(rules.floor))


@jit
def hold(rules: Rules, theta: Floats, gradient: Floats) -> None:
    """No gradient of a log standard deviation that is held by its floor."""
    for place in range(len(theta) - rules.sizes[-1], len(theta)):
        if theta[place] < theta.dtype.type(rules.floor):
            gradient[place] = 0.0


@jit
def room_for_hidden(rules: Rules, theta: Floats, samples: int) -> Floats:
    """Room for what the hidden layers give."""
    return np.empty(samples * rules.sizes[1:-1].sum(), theta.dtype)
