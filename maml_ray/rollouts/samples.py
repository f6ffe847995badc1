"""Turn trajectories and their advantages into the samples that losses average over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer, normalize
from maml_ray.kernels.types import Samples as Samples
from maml_ray.rollouts.trajectories import Trajectories


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
