"""Compute discounted returns, linear baselines and GAE advantages in NumPy.

Everything is float64 and separate for each task and phase: a baseline is fitted to the same
trajectories whose advantages it is subtracted in. Axes are those of
:mod:`maml_ray.rollouts.trajectories`: K episodes, T steps, D observation size.

As in the papers, the value after the last step is zero even if only the time limit ended the
episode, which is consistent because the baseline knows the time. ``bootstrap_time_limit`` in the
settings changes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from maml_ray.config.sections import AdvantageSettings
from maml_ray.rollouts.trajectories import Trajectories

Float64 = NDArray[np.float64]

OBSERVATION_LIMIT = 10.0
RIDGE = 1e-5
_BLOCK = 256
"""Steps of a block of :func:`discounted_sums`, whose matrices are kept: half a megabyte each."""


def discounted_sums(values: Float64, discount: float) -> Float64:
    """Return ``sum_k discount^k values[t + k]`` for every step t of ``values`` (..., T).

    Computes the recursion ``y_t = x_t + discount y_{t+1}`` in blocks of ``_BLOCK`` steps, last to
    first: each is one product with a triangular matrix, plus the discounted sum that follows it.
    Time and memory are linear in T.
    """
    sums = np.empty_like(values)
    following = np.zeros((*values.shape[:-1], 1))
    for end in range(values.shape[-1], 0, -_BLOCK):
        block = slice(max(end - _BLOCK, 0), end)
        size = block.stop - block.start
        sums[..., block] = values[..., block] @ _discount_matrix(size, discount)
        if end < values.shape[-1]:
            sums[..., block] += following * float(discount) ** np.arange(size, 0, -1)
        following = sums[..., block.start, None]
    return sums


@lru_cache(maxsize=8)
def _discount_matrix(steps: int, discount: float) -> Float64:
    lag = np.subtract.outer(np.arange(steps), np.arange(steps))
    matrix = np.where(lag >= 0, float(discount) ** np.maximum(lag, 0), 0.0)
    matrix.flags.writeable = False
    return matrix


def baseline_features(observations: NDArray[np.float32], time: NDArray[np.integer]) -> Float64:
    """Return features (..., 2 D + 4) of states (..., D) at steps (...): s, s^2, t, t^2, t^3, 1.

    Duan et al. 2016 (https://arxiv.org/abs/1604.06778), appendix 2, with s clipped to +-10 and t
    in hundreds of steps.
    """
    clipped = _clip(observations)
    hundreds = np.broadcast_to(time / 100.0, observations.shape[:-1])[..., None]
    time_features = (hundreds, hundreds**2, hundreds**3, np.ones_like(hundreds))
    return np.concatenate((clipped, np.square(clipped), *time_features), axis=-1)


def timeless_features(observations: NDArray[np.float32]) -> Float64:
    """Return features (..., 2 D + 1) of states (..., D): s, s^2, 1."""
    clipped = _clip(observations)
    return np.concatenate((clipped, np.square(clipped), np.ones_like(clipped[..., :1])), axis=-1)


def _clip(observations: NDArray[np.float32]) -> Float64:
    return np.clip(observations.astype(np.float64), -OBSERVATION_LIMIT, OBSERVATION_LIMIT)


@dataclass(frozen=True)
class BaselineValues:
    """Values of a baseline.

    Attributes:
        steps: (K, T), zero after an episode's end.
        final: (K,) value after the last step: zero unless it is bootstrapped.
    """

    steps: Float64
    final: Float64


def fit_baseline(trajectories: Trajectories, rewards: Float64, discount: float) -> BaselineValues:
    """Fit a linear baseline to the discounted returns by ridge regression, and evaluate it.

    Minimizes ``|X w - y|^2 + 1e-5 |w|^2`` over the unmasked steps. The final values are zero.
    """
    observations, mask = trajectories.observations, trajectories.mask
    features = baseline_features(observations, np.arange(observations.shape[1]))
    x, y = features[mask], discounted_sums(rewards, discount)[mask]
    weights = _solve_ridge(x, x, y)
    return BaselineValues(np.where(mask, features @ weights, 0.0), np.zeros(trajectories.episodes))


def fit_bootstrapped_baseline(
    trajectories: Trajectories, rewards: Float64, discount: float
) -> BaselineValues:
    """Fit a linear baseline that treats an episode cut off by the time limit as continuing.

    Its features omit the time. With it the fit is ill-posed: ``discount^-t`` is a value function
    that no reward contradicts, a cubic in t approximates it, and the noise of the rewards diverges
    along it.

    The rewards after a time limit are replaced by the baseline's value of the final state, both in
    the returns it is fitted to and in the advantages: ``y_t = sum_k discount^k r_{t+k} +
    discount^{T-t} w x_T``. The targets are linear in the weights, so that their fixed point is one
    linear solve (least-squares temporal differences with lambda = 1, Boyan 2002,
    https://doi.org/10.1023/A:1017936530646).

    Raises:
        ValueError: the trajectories lack ``final_observations`` or ``terminated``.
    """
    if trajectories.final_observations is None or trajectories.terminated is None:
        raise ValueError("bootstrapping needs final_observations and terminated")
    features, mask = timeless_features(trajectories.observations), trajectories.mask
    truncated = ~trajectories.terminated
    final = timeless_features(trajectories.final_observations) * truncated[:, None]
    steps_left = mask.sum(axis=1)[:, None] - np.arange(mask.shape[1])
    final_discount = np.where(mask, float(discount) ** np.maximum(steps_left, 0), 0.0)
    x, y = features[mask], discounted_sums(rewards, discount)[mask]
    x_final = (final_discount[..., None] * final[:, None, :])[mask]
    weights = _solve_ridge(x, x - x_final, y)
    return BaselineValues(np.where(mask, features @ weights, 0.0), final @ weights)


def _solve_ridge(x: Float64, differences: Float64, y: Float64) -> Float64:
    """Return the weights (P,) that solve ``(x' differences + 1e-5 I) w = x' y``; x is (n, P).

    With more features than samples, as of images, it solves the n equations of the equal
    ``w = x' (differences x' + 1e-5 I)^-1 y``.
    """
    if x.shape[0] < x.shape[1]:
        return (x.T @ np.linalg.solve(_plus_ridge(differences @ x.T), y)).astype(np.float64)
    return np.linalg.solve(_plus_ridge(x.T @ differences), x.T @ y).astype(np.float64)


def _plus_ridge(matrix: Float64) -> Float64:
    matrix[np.diag_indices_from(matrix)] += RIDGE
    return matrix


def compute_gae(
    rewards: Float64,
    values: BaselineValues,
    lengths: NDArray[np.integer],
    settings: AdvantageSettings,
) -> Float64:
    """Return generalized advantage estimates (K, T).

    ``delta_t = r_t + discount V_{t+1} - V_t`` and ``A_t = delta_t + discount lambda A_{t+1}``
    (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16).

    Args:
        rewards: (K, T), zero after an episode's end.
        values: baseline values of the same episodes.
        lengths: (K,) steps of each episode.
        settings: discount and lambda.
    """
    next_values = np.zeros_like(rewards)
    next_values[:, :-1] = values.steps[:, 1:]
    next_values[np.arange(len(lengths)), lengths - 1] = values.final
    deltas = rewards + settings.discount * next_values - values.steps
    return discounted_sums(deltas, settings.discount * settings.gae_lambda)


def compute_advantages(
    trajectories: Trajectories, settings: AdvantageSettings
) -> NDArray[np.float32]:
    """Return the advantages (K, T) of a batch of trajectories, zero after an episode's end.

    With ``settings.normalize`` they have mean 0 and standard deviation 1 over the unmasked steps.
    """
    mask = trajectories.mask
    rewards = np.where(mask, trajectories.rewards.astype(np.float64), 0.0)
    if settings.baseline == "zero":
        values = BaselineValues(np.zeros_like(rewards), np.zeros(trajectories.episodes))
    elif settings.bootstrap_time_limit:
        values = fit_bootstrapped_baseline(trajectories, rewards, settings.discount)
    else:
        values = fit_baseline(trajectories, rewards, settings.discount)
    advantages: Float64 = compute_gae(rewards, values, mask.sum(axis=1), settings)
    advantages = np.where(mask, advantages, 0.0)
    if settings.normalize:
        unmasked = advantages[mask]
        normalized = (advantages - unmasked.mean()) / (unmasked.std() + 1e-8)
        advantages = np.where(mask, normalized, 0.0)
    return advantages.astype(np.float32)
