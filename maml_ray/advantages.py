"""From rewards to advantages: discounted returns, a linear feature baseline, GAE.

Everything is computed in float64 and per task and phase: the baseline is fitted to the very
trajectories whose advantages it serves, before they are computed. Axes as in
:mod:`maml_ray.trajectories`: K episodes, T steps, D observation size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from maml_ray.config import AdvantageSettings
from maml_ray.trajectories import Trajectories

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


def baseline_features(observations: NDArray[np.float32]) -> Float64:
    """Features (K, T, 2 D + 4) of a state and its time: s, s^2, t, t^2, t^3, 1.

    Duan et al. 2016 (https://arxiv.org/abs/1604.06778), appendix 2, with s clipped to +-10 and t
    in hundreds of steps.
    """
    episodes, steps, _ = observations.shape
    clipped = np.clip(observations.astype(np.float64), -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
    time = np.arange(steps, dtype=np.float64)[:, None] / 100.0
    clock = np.concatenate((time, time**2, time**3, np.ones_like(time)), axis=1)
    clock = np.broadcast_to(clock, (episodes, *clock.shape))
    return np.concatenate((clipped, np.square(clipped), clock), axis=2)


def fitted_values(trajectories: Trajectories, returns: Float64) -> Float64:
    """Values (K, T) of a baseline, linear in the features, fitted to ``returns`` (K, T) by ridge.

    Minimises ``|X w - y|^2 + 1e-5 |w|^2`` over the steps that were taken; zero after an
    episode's end.
    """
    features = baseline_features(trajectories.observations)
    taken = trajectories.mask
    x, y = features[taken], returns[taken]
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += RIDGE
    weights = np.linalg.solve(gram, x.T @ y)
    return np.where(taken, features @ weights, 0.0)


def generalised_advantages(
    rewards: Float64, values: Float64, discount: float, gae_lambda: float
) -> Float64:
    """GAE (K, T) of ``rewards`` and ``values`` (K, T), both zero after an episode's end.

    ``delta_t = r_t + discount V_{t+1} - V_t`` and ``A_t = delta_t + discount lambda A_{t+1}``
    (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16). The value after the
    last step is zero also where the time limit ended the episode, as in the MAML papers: the
    baseline knows the time, so it knows that nothing follows.
    """
    following = np.zeros_like(values)
    following[:, :-1] = values[:, 1:]
    deltas = rewards + discount * following - values
    return discounted_sums(deltas, discount * gae_lambda)


def advantages(trajectories: Trajectories, settings: AdvantageSettings) -> NDArray[np.float32]:
    """Advantages (K, T) of one task and phase, zero after an episode's end.

    With ``normalise`` they have mean 0 and standard deviation 1 over the steps taken.
    """
    rewards = np.where(trajectories.mask, trajectories.rewards.astype(np.float64), 0.0)
    if settings.baseline == "linear":
        values = fitted_values(trajectories, discounted_sums(rewards, settings.discount))
    else:
        values = np.zeros_like(rewards)
    result = generalised_advantages(rewards, values, settings.discount, settings.gae_lambda)
    result = np.where(trajectories.mask, result, 0.0)
    if settings.normalise:
        taken = result[trajectories.mask]
        centred = (result - taken.mean()) / (taken.std() + 1e-8)
        result = np.where(trajectories.mask, centred, 0.0)
    return result.astype(np.float32)
