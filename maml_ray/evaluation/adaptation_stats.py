"""What an inner step was like: the figures that tell whether an adaptation is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import distribution, kl_divergence, to_torch
from maml_ray.maml.losses import inner_losses, make_samples
from maml_ray.maml.meta_parameters import policy_part
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.trajectories import Trajectories


@dataclass(frozen=True)
class AdaptationStats:
    """Figures of one inner step.

    Attributes:
        kl: KL divergence from the policy before the step to the one after it, in nats, mean over
            the support's steps.
        gradient_norm: Euclidean, of the inner loss at the parameters before the step.
        support_return: mean undiscounted return of the support's episodes.
        env_steps: steps in the support.
    """

    kl: float
    gradient_norm: float
    support_return: float
    env_steps: int


def adaptation_stats(
    settings: Settings,
    spec: PolicySpec,
    before: NumpyParameters,
    after: NumpyParameters,
    support: Trajectories,
    normalizer: Normalizer | None,
) -> AdaptationStats:
    """Look at the step that ``support`` made of ``before``.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        before, after: parameters.
        support: what the step was taken on.
        normalizer: of observations.
    """
    samples = make_samples(support, compute_advantages(support, settings.advantages), normalizer)
    (loss,) = inner_losses(spec, settings.inner, (samples,))
    gradient, was = torch.func.grad(loss, has_aux=True)(policy_part(to_torch(before)))
    now = distribution(spec, to_torch(after), samples.observations)
    divergence = kl_divergence(was, now).reshape(samples.weights.shape)
    squares = sum(float(part.double().square().sum()) for part in gradient.values())
    return AdaptationStats(
        kl=float((divergence * samples.weights).sum()),
        gradient_norm=squares**0.5,
        support_return=float(support.returns.mean()),
        env_steps=support.env_steps,
    )
