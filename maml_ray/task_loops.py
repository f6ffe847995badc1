"""One task's meta-gradient as a compiled loop: adaptation, judgement, and all the way back.

What :mod:`~maml_ray.analytic_gradient` does in batched operations, for one task after another, with
nothing of Python on the way: threads that have a task each do not wait for one another.

Axes: K inner steps, S samples of a phase, D observation size, A action size, P parameters of the
network, Q = P + A of the policy, whose last are the log standard deviations. Arrays of samples are
flat; see :mod:`~maml_ray.perceptron_loops`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maml_ray import gaussian_loops, perceptron_loops
from maml_ray.compiling import compiled
from maml_ray.gaussian_loops import Floats
from maml_ray.perceptron_loops import Sizes

LOSS, INNER_KL, QUERY_KL, CLIP_FRACTION, LARGEST_RATIO_ERROR, ENTROPY = range(6)
"""Places of what there is to tell of a task: the loss, then ``Diagnostics``."""


class Rules(NamedTuple):
    """What is asked for.

    Attributes:
        sizes: of the network's layers.
        relu: whether that is the activation.
        floor: of the log standard deviations.
        ratio: whether the inner objective is the ratio; else the log-probability.
        l2: the inner loop's.
        objective: the outer one, by its number in :mod:`~maml_ray.gaussian_loops`.
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


class Held(NamedTuple):
    """The policy that collected a phase, at its samples: what divergences are from.

    Attributes:
        mean: (S * A,), or (K, ...) of the support phases.
        log_std: (A,) likewise.
    """

    mean: Floats
    log_std: Floats


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


@compiled
def _floored(rules: Rules, theta: Floats) -> Floats:
    """The log standard deviations (A,)."""
    return np.maximum(theta[len(theta) - rules.sizes[-1] :], theta.dtype.type(rules.floor))


@compiled
def _hold(rules: Rules, theta: Floats, gradient: Floats) -> None:
    """No gradient of a log standard deviation that is held by its floor."""
    for place in range(len(theta) - rules.sizes[-1], len(theta)):
        if theta[place] < theta.dtype.type(rules.floor):
            gradient[place] = 0.0


@compiled
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
        log_std, by_mean = _floored(rules, here), steps.by_mean[k]
        perceptron_loops.forward(
            rules.sizes, rules.relu, here[:network], support.observations[k], steps.hidden[k], mean
        )
        gaussian_loops.log_probs(mean, log_std, support.actions[k], now)
        gaussian_loops.inner_weights(
            rules.ratio,
            now,
            support.log_probs[k],
            support.advantages[k],
            support.weights[k],
            steps.weights[k],
        )
        gaussian_loops.slopes(
            mean, log_std, support.actions[k], steps.weights[k], by_mean, gradient[network:]
        )
        perceptron_loops.backward(
            rules.sizes,
            rules.relu,
            here[:network],
            support.observations[k],
            steps.hidden[k],
            by_mean,
            steps.slopes[k],
            gradient[:network],
        )
        _hold(rules, here, gradient)
        for place in range(len(theta)):
            gradient[place] += 2.0 * rules.l2 * here[place]
            steps.thetas[k + 1, place] = here[place] - rates[place] * gradient[place]
    return steps


@compiled
def meta_gradient(
    rules: Rules,
    theta: Floats,
    rates: Floats,
    support: Data,
    of_support: Held,
    query: Data,
    of_query: Held,
    gradient: Floats,
    by_rate: Floats,
    told: Floats,
) -> None:
    """One task's.

    Args:
        rules: what is asked for.
        theta: (Q,) the policy's meta-parameters.
        rates: (Q,) the inner rates.
        support, of_support: (K, ...) data, and the policies that collected them.
        query, of_query: of one phase.
        gradient: (Q,) of the loss, to be filled in.
        by_rate: (Q,) of the loss by the rates, likewise.
        told: (6,) the loss and what else there is to tell, likewise.
    """
    steps = steps_taken(rules, theta, rates, support)
    gradient[:] = _judge(rules, steps.thetas[-1], query, of_query, told)
    _add_inner_kl(rules, steps, support, of_support, told)
    by_rate[:] = 0
    for k in range(len(steps.weights) - 1, -1, -1):
        by_rate -= gradient * steps.gradients[k]
        if rules.second:
            _go_back(rules, steps, support, of_support, k, rates, gradient)
        elif rules.kl > 0.0:
            _add_kl_alone(rules, steps, support, of_support, k, gradient)


@compiled
def meta_value(
    rules: Rules,
    theta: Floats,
    rates: Floats,
    support: Data,
    of_support: Held,
    query: Data,
    of_query: Held,
    told: Floats,
) -> None:
    """What :func:`meta_gradient` tells, without the gradient."""
    steps = steps_taken(rules, theta, rates, support)
    hidden = _query_hidden(rules, theta, len(query.weights))
    mean, weight = np.empty_like(query.actions), np.empty_like(query.weights)
    _look(rules, steps.thetas[-1], query, of_query, hidden, mean, weight, told)
    _add_inner_kl(rules, steps, support, of_support, told)


@compiled
def fisher_product(
    rules: Rules,
    rates: Floats,
    steps: Steps,
    support: Data,
    observations: Floats,
    weights: Floats,
    direction: Floats,
    rates_moved: Floats,
    gradient: Floats,
    by_rate: Floats,
) -> None:
    """The Hessian of one task's mean KL at the query data, where it is zero, times a direction.

    ``J^T F J``: the direction goes forward through the inner steps to the adapted policy's outputs,
    through their Fisher matrix, and back.

    Args:
        rules: what is asked for.
        rates: (Q,) the inner rates.
        steps: from :func:`steps_taken` on ``support``.
        support: (K, ...).
        observations: of the query.
        weights: (S,) of its samples.
        direction: (Q,) of the policy's meta-parameters.
        rates_moved: (Q,) of the rates.
        gradient: (Q,) the product's part of the policy, to be filled in.
        by_rate: (Q,) that of the rates, likewise.
    """
    change, count = direction.copy(), len(steps.weights)
    for k in range(count):
        moved = rates_moved * steps.gradients[k]
        if rules.second:
            moved += rates * _hessian_product(rules, steps, support, k, change)
        change -= moved
    gradient[:] = _by_fisher(rules, steps.thetas[count], observations, weights, change)
    by_rate[:] = 0
    for k in range(count - 1, -1, -1):
        by_rate -= gradient * steps.gradients[k]
        if rules.second:
            gradient += _hessian_product(rules, steps, support, k, -(rates * gradient))


@compiled
def _by_fisher(
    rules: Rules, theta: Floats, observations: Floats, weights: Floats, direction: Floats
) -> Floats:
    """The Hessian of a policy's own mean KL, at zero, times a direction (Q,): one of the same."""
    samples, outputs = len(weights), rules.sizes[-1]
    network, log_std = len(theta) - outputs, _floored(rules, theta)
    hidden = _query_hidden(rules, theta, samples)
    before, mean = np.empty_like(hidden), np.empty(samples * outputs, theta.dtype)
    moved, gradient = np.empty_like(mean), direction.copy()
    parameters = theta[:network]
    perceptron_loops.forward(rules.sizes, rules.relu, parameters, observations, hidden, mean)
    perceptron_loops.push(
        rules.sizes,
        rules.relu,
        parameters,
        observations,
        hidden,
        direction[:network],
        before,
        moved,
    )
    _hold(rules, theta, gradient)
    gaussian_loops.fisher_slopes(log_std, weights, moved, gradient[network:])
    _to_gradient(rules, theta, observations, hidden, moved, gradient)
    return gradient


@compiled
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
    hidden = _query_hidden(rules, theta, means.shape[1] // outputs)
    network = len(theta) - outputs
    perceptron_loops.forward(
        rules.sizes,
        rules.relu,
        steps.thetas[-1][:network],
        query_observations,
        hidden,
        means[count],
    )
    for k in range(count + 1):
        log_stds[k] = _floored(rules, steps.thetas[k])


@compiled
def _look(
    rules: Rules,
    theta: Floats,
    query: Data,
    of_query: Held,
    hidden: Floats,
    mean: Floats,
    weight: Floats,
    told: Floats,
) -> None:
    """The outer loss at an adapted policy, without the inner KL, and what else there is to tell.

    Fills in what the network leaves behind, and the loss's slope ``weight`` by log-probabilities.
    """
    log_std, now = _floored(rules, theta), np.empty_like(weight)
    network = len(theta) - len(log_std)
    perceptron_loops.forward(
        rules.sizes, rules.relu, theta[:network], query.observations, hidden, mean
    )
    gaussian_loops.log_probs(mean, log_std, query.actions, now)
    told[LOSS] = gaussian_loops.outer_loss(
        rules.objective,
        rules.clip,
        now,
        query.log_probs,
        query.advantages,
        query.weights,
        weight,
    )
    told[QUERY_KL] = gaussian_loops.kl(
        of_query.mean, of_query.log_std, mean, log_std, query.weights
    )
    told[ENTROPY] = gaussian_loops.entropy(log_std, query.weights)
    told[CLIP_FRACTION], told[LARGEST_RATIO_ERROR] = gaussian_loops.ratio_errors(
        rules.clip, now, query.log_probs, query.weights
    )


@compiled
def _query_hidden(rules: Rules, theta: Floats, samples: int) -> Floats:
    """Room for what the hidden layers give."""
    return np.empty(samples * rules.sizes[1:-1].sum(), theta.dtype)


@compiled
def _judge(rules: Rules, theta: Floats, query: Data, of_query: Held, told: Floats) -> Floats:
    """The outer loss's gradient (Q,) at an adapted policy, after :func:`_look`."""
    samples, outputs = len(query.weights), rules.sizes[-1]
    hidden, mean = _query_hidden(rules, theta, samples), np.empty_like(query.actions)
    weight, by_mean, gradient = (
        np.empty_like(query.weights),
        np.empty_like(mean),
        np.empty_like(theta),
    )
    network = len(theta) - outputs
    _look(rules, theta, query, of_query, hidden, mean, weight, told)
    gaussian_loops.slopes(
        mean, _floored(rules, theta), query.actions, weight, by_mean, gradient[network:]
    )
    _to_gradient(rules, theta, query.observations, hidden, by_mean, gradient)
    return gradient


@compiled
def _to_gradient(
    rules: Rules,
    theta: Floats,
    observations: Floats,
    hidden: Floats,
    by_mean: Floats,
    gradient: Floats,
) -> None:
    """Through the network and the floor; the slopes by log standard deviations are there."""
    network = len(theta) - rules.sizes[-1]
    perceptron_loops.backward(
        rules.sizes,
        rules.relu,
        theta[:network],
        observations,
        hidden,
        by_mean,
        np.empty_like(hidden),
        gradient[:network],
    )
    _hold(rules, theta, gradient)


@compiled
def _add_inner_kl(
    rules: Rules, steps: Steps, support: Data, of_support: Held, told: Floats
) -> None:
    """Mean over inner steps of the KL from the collecting policies; its part of the loss."""
    total, count = 0.0, len(steps.weights)
    for k in range(count):
        log_std = _floored(rules, steps.thetas[k])
        total += gaussian_loops.kl(
            of_support.mean[k], of_support.log_std[k], steps.means[k], log_std, support.weights[k]
        )
    told[INNER_KL] = total / max(count, 1)
    told[LOSS] += rules.kl * told[INNER_KL]


@compiled
def _go_back(
    rules: Rules,
    steps: Steps,
    support: Data,
    of_support: Held,
    k: int,
    rates: Floats,
    adjoint: Floats,
) -> None:
    """The adjoint before inner step ``k``, from that behind it and the inner KL's slope."""
    direction = -(rates * adjoint)
    before, by_mean, change = _pushed(rules, steps, support, k, direction)
    if rules.kl > 0.0:
        by_std = change[len(change) - rules.sizes[-1] :]
        _add_kl(rules, steps, support, of_support, k, by_mean, by_std)
    _bent(rules, steps, support, k, direction, before, by_mean, change)
    adjoint += change


@compiled
def _pushed(
    rules: Rules, steps: Steps, support: Data, k: int, direction: Floats
) -> tuple[Floats, Floats, Floats]:
    """What a direction (Q,) does at inner step ``k``: to the network, and to the loss's slopes.

    These are (S * A,) by the means, and by the log standard deviations at the end of (Q,) numbers.
    """
    theta, mean = steps.thetas[k], steps.means[k]
    network = len(theta) - rules.sizes[-1]
    before, moved = np.empty_like(steps.hidden[k]), np.empty_like(mean)
    by_mean, change = np.empty_like(mean), np.empty_like(theta)
    perceptron_loops.push(
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
    _hold(rules, theta, wider)
    gaussian_loops.slopes_along(
        rules.ratio,
        mean,
        _floored(rules, theta),
        support.actions[k],
        steps.weights[k],
        moved,
        wider[network:],
        by_mean,
        change[network:],
    )
    return before, by_mean, change


@compiled
def _bent(
    rules: Rules,
    steps: Steps,
    support: Data,
    k: int,
    direction: Floats,
    before: Floats,
    by_mean: Floats,
    change: Floats,
) -> None:
    """The Hessian of inner loss ``k`` times a direction, from what :func:`_pushed` gave."""
    theta = steps.thetas[k]
    network = len(theta) - rules.sizes[-1]
    perceptron_loops.push_backward(
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
    _hold(rules, theta, change)
    for place in range(len(theta)):
        change[place] += 2.0 * rules.l2 * direction[place]


@compiled
def _hessian_product(
    rules: Rules, steps: Steps, support: Data, k: int, direction: Floats
) -> Floats:
    """The Hessian of inner loss ``k`` times a direction (Q,)."""
    before, by_mean, change = _pushed(rules, steps, support, k, direction)
    _bent(rules, steps, support, k, direction, before, by_mean, change)
    return change


@compiled
def _add_kl_alone(
    rules: Rules, steps: Steps, support: Data, of_support: Held, k: int, adjoint: Floats
) -> None:
    """The inner KL's part of a first-order gradient."""
    theta = steps.thetas[k]
    by_mean, change = np.zeros_like(steps.means[k]), np.zeros_like(theta)
    by_std = change[len(change) - rules.sizes[-1] :]
    _add_kl(rules, steps, support, of_support, k, by_mean, by_std)
    _to_gradient(rules, theta, support.observations[k], steps.hidden[k], by_mean, change)
    adjoint += change


@compiled
def _add_kl(
    rules: Rules,
    steps: Steps,
    support: Data,
    of_support: Held,
    k: int,
    by_mean: Floats,
    by_std: Floats,
) -> None:
    gaussian_loops.add_kl_slopes(
        rules.kl / len(steps.weights),
        of_support.mean[k],
        of_support.log_std[k],
        steps.means[k],
        _floored(rules, steps.thetas[k]),
        support.weights[k],
        by_mean,
        by_std,
    )
