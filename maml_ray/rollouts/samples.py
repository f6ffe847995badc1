"""What was collected, as the arrays that the losses are sums over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.rollouts.trajectories import Trajectories


def sample_arrays(
    trajectories: Trajectories,
    advantages: NDArray[np.float32],
    normalizer: Normalizer | None = None,
) -> tuple[NDArray[np.float32], ...]:
    """Trajectories and their advantages (K, T) as :class:`~maml_ray.maml.losses.Samples` has them.

    Observations go through the ``normalizer`` that the collecting policy used, if it used one.
    """
    steps = trajectories.mask.size
    observations = trajectories.observations
    if normalizer is not None:
        observations = normalizer(observations)
    weights = trajectories.mask / np.float32(max(trajectories.env_steps, 1))
    return (
        observations.reshape(steps, -1),
        trajectories.actions.reshape(steps, -1),
        trajectories.log_probs,
        advantages,
        weights.astype(np.float32),
    )
