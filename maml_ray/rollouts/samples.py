"""Turn trajectories and their advantages into what losses and inner steps take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer, normalize
from maml_ray.config.sections import AdvantageSettings, InnerSettings
from maml_ray.kernels.types import Samples as Samples
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.trajectories import Trajectories

Support = Samples[NDArray[np.float32]] | NDArray[np.float32]
"""What an inner step takes: samples; or the gradient (C,) of the return by the context."""


def make_samples(
    trajectories: Trajectories,
    advantages: NDArray[np.float32],
    normalizer: Normalizer | None = None,
) -> Samples[NDArray[np.float32]]:
    """Return the samples of one task and phase.

    Args:
        trajectories: K episodes of T steps.
        advantages: (K, T).
        normalizer: of observations, as the behavior policy used it; None for raw observations.
    """
    steps = trajectories.mask.size
    observations = normalize(trajectories.observations, normalizer)
    weights = trajectories.mask / np.float32(max(trajectories.env_steps, 1))
    return Samples(
        observations.reshape(steps, -1),
        trajectories.actions.reshape(steps, -1),
        trajectories.log_probs,
        advantages,
        weights.astype(np.float32),
    )


def make_support(
    inner: InnerSettings,
    advantages: AdvantageSettings,
    trajectories: Trajectories,
    normalizer: Normalizer | None = None,
) -> Support:
    """Return what an inner step takes of one task's support data.

    Args:
        inner: settings of the inner loop.
        advantages: how advantages are computed from rewards; a context needs none.
        trajectories: K episodes of T steps.
        normalizer: of observations, as the behavior policy used it; None for raw observations.
    """
    if inner.parameters == "context":
        return context_gradient(trajectories)
    estimates = compute_advantages(trajectories, advantages)
    return make_samples(trajectories, estimates, normalizer)


def context_gradient(trajectories: Trajectories) -> NDArray[np.float32]:
    """Return the gradient (C,) of the return per step of the horizon by the context.

    By the central differences of pairs of episodes; see :mod:`~maml_ray.policies.context`. It is 0
    for numbers of the context that no episode moved.

    Args:
        trajectories: K episodes of T steps, the horizon.

    Raises:
        ValueError: the trajectories have no ``context_offsets``.
    """
    if trajectories.context_offsets is None:
        raise ValueError("the support episodes have no context_offsets")
    offsets = trajectories.context_offsets.astype(np.float64)
    per_step = trajectories.returns / trajectories.rewards.shape[1]
    squares = np.square(offsets).sum(axis=0)
    gradient = (per_step[:, None] * offsets).sum(axis=0) / np.where(squares > 0.0, squares, 1.0)
    rounded: NDArray[np.float32] = gradient.astype(np.float32)
    return rounded
