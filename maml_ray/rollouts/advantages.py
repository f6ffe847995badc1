"""From rewards to advantages: discounted returns, a linear feature baseline, GAE.

Everything is computed in float64 and per task and phase: the baseline is fitted to the very
trajectories whose advantages it serves, before they are computed. Axes as in
:mod:`maml_ray.rollouts.trajectories`: K episodes, T steps, D observation size.

The papers set the value after the last step to zero also where only the time limit ended the
episode; since the baseline knows the time, that is legitimate. Bootstrapping there is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.settings import AdvantageSettings
from maml_ray.rollouts.trajectories import Trajectories

Float64 = NDArray[np.float64]

OBSERVATION_LIMIT = 10.0
RIDGE = 1e-5


def discounted_sums(values: Float64, discount: float) -> Float64:
    """``sum_k discount^k values[t + k]`` for every t of ``values`` (..., T).

    The recursion ``y_t = x_t + discount y_{t+1}`` as one product with a triangular matrix.
    """
    return values @ _powers(values.shape[-1], discount)


@lru_cache(maxsize=8)
def _powers(steps: int, discount: float) -> Float64:
    lag = np.subtract.outer(np.arange(steps), np.arange(steps))
    matrix = np.where(lag >= 0, float(discount) ** np.maximum(lag, 0), 0.0)
    matrix.flags.writeable = False
    return matrix


def baseline_features(observations: NDArray[np.float32], time: NDArray[np.integer]) -> Float64:
    """Features (..., 2 D + 4) of states (..., D) at time steps (...): s, s^2, t, t^2, t^3, 1.

    Duan et al. 2016 (https://arxiv.org/abs/1604.06778), appendix 2, with s clipped to +-10 and t
    in hundreds of steps.
    """
    clipped = _clipped(observations)
    hundreds = np.broadcast_to(time / 100.0, observations.shape[:-1])[..., None]
    clock = (hundreds, hundreds**2, hundreds**3, np.ones_like(hundreds))
    return np.concatenate((clipped, np.square(clipped), *clock), axis=-1)


def timeless_features(observations: NDArray[np.float32]) -> Float64:
    """Features (..., 2 D + 1) of states (..., D): s, s^2, 1."""
    clipped = _clipped(observations)
    return np.concatenate((clipped, np.square(clipped), np.ones_like(clipped[..., :1])), axis=-1)


def _clipped(observations: NDArray[np.float32]) -> Float64:
    return np.clip(observations.astype(np.float64), -OBSERVATION_LIMIT, OBSERVATION_LIMIT)


@dataclass(frozen=True)
class Values:
    """A baseline's values: ``of_steps`` (K, T), zero after an episode's end, and ``final`` (K,).

    ``final`` is the value behind the last step: zero, unless it is bootstrapped.
    """

    of_steps: Float64
    final: Float64


def fit_baseline(trajectories: Trajectories, rewards: Float64, discount: float) -> Values:
    """Values of a baseline, linear in the features, fitted by ridge to the discounted returns.

    Minimizes ``|X w - y|^2 + 1e-5 |w|^2`` over the steps that were taken; the value after the last
    step is zero.
    """
    observations, taken = trajectories.observations, trajectories.mask
    x = baseline_features(observations, np.arange(observations.shape[1]))
    y = discounted_sums(rewards, discount)[taken]
    seen = x[taken]
    weights = _solved(seen.T @ seen, seen.T @ y)
    return Values(np.where(taken, x @ weights, 0.0), np.zeros(trajectories.episodes))


def fit_bootstrapped_baseline(
    trajectories: Trajectories, rewards: Float64, discount: float
) -> Values:
    """A baseline without the time, where an episode cut off by the time limit is taken to go on.

    With the time it could not be told: ``discount^-t`` is a value that no reward contradicts, a
    cubic in t comes close to it, and the noise of the rewards then runs away along it.

    What would follow is worth the baseline's own value of the final state, in the returns that it
    is fitted to as much as in the advantages: ``y_t = sum_k discount^k r_{t+k} + discount^{T-t} w
    x_T``. The targets are linear in the weights, so their fixed point is one linear solve
    (least-squares temporal differences with lambda = 1, Boyan 2002,
    https://doi.org/10.1023/A:1017936530646).

    Raises:
        ValueError: the trajectories do not hold their final observations.
    """
    if trajectories.final_observations is None or trajectories.terminated is None:
        raise ValueError("bootstrapping needs final_observations and terminated")
    x, taken = timeless_features(trajectories.observations), trajectories.mask
    lengths = taken.sum(axis=1)
    goes_on = ~trajectories.terminated
    behind = timeless_features(trajectories.final_observations) * goes_on[:, None]
    left = lengths[:, None] - np.arange(taken.shape[1])
    tail = np.where(taken, float(discount) ** np.maximum(left, 0), 0.0)
    y = discounted_sums(rewards, discount)[taken]
    following = (tail[..., None] * behind[:, None, :])[taken]
    seen = x[taken]
    weights = _solved(seen.T @ (seen - following), seen.T @ y)
    return Values(np.where(taken, x @ weights, 0.0), behind @ weights)


def _solved(matrix: Float64, target: Float64) -> Float64:
    matrix[np.diag_indices_from(matrix)] += RIDGE
    return np.linalg.solve(matrix, target).astype(np.float64)


def compute_gae(
    rewards: Float64, values: Values, lengths: NDArray[np.integer], settings: AdvantageSettings
) -> Float64:
    """GAE (K, T) of ``rewards`` (K, T), zero after an episode's end, and ``lengths`` (K,) in steps.

    ``delta_t = r_t + discount V_{t+1} - V_t`` and ``A_t = delta_t + discount lambda A_{t+1}``
    (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16).
    """
    following = np.zeros_like(rewards)
    following[:, :-1] = values.of_steps[:, 1:]
    following[np.arange(len(lengths)), lengths - 1] = values.final
    deltas = rewards + settings.discount * following - values.of_steps
    return discounted_sums(deltas, settings.discount * settings.gae_lambda)


def compute_advantages(
    trajectories: Trajectories, settings: AdvantageSettings
) -> NDArray[np.float32]:
    """Advantages (K, T) of one task and phase, zero after an episode's end.

    With ``normalize`` they have mean 0 and standard deviation 1 over the steps taken.
    """
    rewards = np.where(trajectories.mask, trajectories.rewards.astype(np.float64), 0.0)
    if settings.baseline == "zero":
        values = Values(np.zeros_like(rewards), np.zeros(trajectories.episodes))
    elif settings.bootstrap_time_limit:
        values = fit_bootstrapped_baseline(trajectories, rewards, settings.discount)
    else:
        values = fit_baseline(trajectories, rewards, settings.discount)
    lengths = trajectories.mask.sum(axis=1)
    result: Float64 = compute_gae(rewards, values, lengths, settings)
    result = np.where(trajectories.mask, result, 0.0)
    if settings.normalize:
        taken = result[trajectories.mask]
        centered = (result - taken.mean()) / (taken.std() + 1e-8)
        result = np.where(trajectories.mask, centered, 0.0)
    return result.astype(np.float32)
