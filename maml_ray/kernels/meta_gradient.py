"""One task's meta-gradient as a compiled loop: adaptation, judgement, and all the way back.

What :mod:`~maml_ray.backends.analytic_gradient` does in batched operations, for one task after
another, with nothing of Python on the way: threads that have a task each do not wait for one
another. Axes: as in
:mod:`~maml_ray.kernels.inner_step`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maml_ray.kernels import gaussian, inner_step, mlp
from maml_ray.kernels.gaussian import Floats
from maml_ray.kernels.inner_step import Data, Rules, Steps
from maml_ray.kernels.jit import jit

LOSS, INNER_KL, QUERY_KL, CLIP_FRACTION, LARGEST_RATIO_ERROR, ENTROPY = range(6)
"""Places of what there is to tell of a task: the loss, then ``Diagnostics``."""


class Held(NamedTuple):
    """The policy that collected a phase, at its samples: what divergences are from.

    Attributes:
        mean: (S * A,), or (K, ...) of the support phases.
        log_std: (A,) likewise.
    """

    mean: Floats
    log_std: Floats


@jit
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
    steps = inner_step.steps_taken(rules, theta, rates, support)
    gradient[:] = _judge(rules, steps.thetas[-1], query, of_query, told)
    _add_inner_kl(rules, steps, support, of_support, told)
    by_rate[:] = 0
    for k in range(len(steps.weights) - 1, -1, -1):
        by_rate -= gradient * steps.gradients[k]
        if rules.second:
            _go_back(rules, steps, support, of_support, k, rates, gradient)
        elif rules.kl > 0.0:
            _add_kl_alone(rules, steps, support, of_support, k, gradient)


@jit
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
    steps = inner_step.steps_taken(rules, theta, rates, support)
    hidden = inner_step.room_for_hidden(rules, theta, len(query.weights))
    mean, weight = np.empty_like(query.actions), np.empty_like(query.weights)
    _look(rules, steps.thetas[-1], query, of_query, hidden, mean, weight, told)
    _add_inner_kl(rules, steps, support, of_support, told)


@jit
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
    log_std, now = inner_step.floored(rules, theta), np.empty_like(weight)
    network = len(theta) - len(log_std)
    mlp.forward(rules.sizes, rules.relu, theta[:network], query.observations, hidden, mean)
    gaussian.log_probs(mean, log_std, query.actions, now)
    told[LOSS] = gaussian.outer_loss(
        rules.objective,
        rules.clip,
        now,
        query.log_probs,
        query.advantages,
        query.weights,
        weight,
    )
    told[QUERY_KL] = gaussian.kl(of_query.mean, of_query.log_std, mean, log_std, query.weights)
    told[ENTROPY] = gaussian.entropy(log_std, query.weights)
    told[CLIP_FRACTION], told[LARGEST_RATIO_ERROR] = gaussian.ratio_errors(
        rules.clip, now, query.log_probs, query.weights
    )


@jit
def _judge(rules: Rules, theta: Floats, query: Data, of_query: Held, told: Floats) -> Floats:
    """The outer loss's gradient (Q,) at an adapted policy, after :func:`_look`."""
    samples, outputs = len(query.weights), rules.sizes[-1]
    hidden, mean = inner_step.room_for_hidden(rules, theta, samples), np.empty_like(query.actions)
    weight, by_mean, gradient = (
        np.empty_like(query.weights),
        np.empty_like(mean),
        np.empty_like(theta),
    )
    network = len(theta) - outputs
    _look(rules, theta, query, of_query, hidden, mean, weight, told)
    gaussian.slopes(
        mean, inner_step.floored(rules, theta), query.actions, weight, by_mean, gradient[network:]
    )
    inner_step.to_gradient(rules, theta, query.observations, hidden, by_mean, gradient)
    return gradient


@jit
def _add_inner_kl(
    rules: Rules, steps: Steps, support: Data, of_support: Held, told: Floats
) -> None:
    """Mean over inner steps of the KL from the collecting policies; its part of the loss."""
    total, count = 0.0, len(steps.weights)
    for k in range(count):
        log_std = inner_step.floored(rules, steps.thetas[k])
        total += gaussian.kl(
            of_support.mean[k], of_support.log_std[k], steps.means[k], log_std, support.weights[k]
        )
    told[INNER_KL] = total / max(count, 1)
    told[LOSS] += rules.kl * told[INNER_KL]


@jit
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
    before, by_mean, change = inner_step.pushed(rules, steps, support, k, direction)
    if rules.kl > 0.0:
        by_std = change[len(change) - rules.sizes[-1] :]
        _add_kl(rules, steps, support, of_support, k, by_mean, by_std)
    inner_step.bent(rules, steps, support, k, direction, before, by_mean, change)
    adjoint += change


@jit
def _add_kl_alone(
    rules: Rules, steps: Steps, support: Data, of_support: Held, k: int, adjoint: Floats
) -> None:
    """The inner KL's part of a first-order gradient."""
    theta = steps.thetas[k]
    by_mean, change = np.zeros_like(steps.means[k]), np.zeros_like(theta)
    by_std = change[len(change) - rules.sizes[-1] :]
    _add_kl(rules, steps, support, of_support, k, by_mean, by_std)
    inner_step.to_gradient(rules, theta, support.observations[k], steps.hidden[k], by_mean, change)
    adjoint += change


@jit
def _add_kl(
    rules: Rules,
    steps: Steps,
    support: Data,
    of_support: Held,
    k: int,
    by_mean: Floats,
    by_std: Floats,
) -> None:
    gaussian.add_kl_slopes(
        rules.kl / len(steps.weights),
        of_support.mean[k],
        of_support.log_std[k],
        steps.means[k],
        inner_step.floored(rules, steps.thetas[k]),
        support.weights[k],
        by_mean,
        by_std,
    )
