"""Measure one inner step: KL divergence, gradient norm and return of the support set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import (
    distribution,
    kl_divergence,
    samples_to_torch,
    to_torch,
)
from maml_ray.maml.meta_parameters import policy_part
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.samples import make_samples
from maml_ray.rollouts.trajectories import Trajectories


@dataclass(frozen=True)
class AdaptationStats:
    """Statistics of one inner step.

    Attributes:
        kl: KL divergence in nats from the policy before the step to the one after it, mean over
            the steps of the support set.
        gradient_norm: Euclidean norm of the inner loss's gradient at the parameters before the
            step.
        support_return: mean undiscounted return of the support set's episodes.
        env_steps: environment steps in the support set.
    """

    kl: float
    gradient_norm: float
    support_return: float
    env_steps: int


def adaptation_stats(before: Agent, after: Agent, support: Trajectories) -> AdaptationStats:
    """Return statistics of the inner step from ``before`` to ``after`` on ``support``."""
    settings, spec = before.settings, before.spec
    advantages = compute_advantages(support, settings.advantages)
    samples = samples_to_torch(make_samples(support, advantages, before.normalizer))
    loss = partial(inner_loss, spec, settings.inner, samples)
    parameters = policy_part(to_torch(before.parameters))
    gradient, old = torch.func.grad(loss, has_aux=True)(parameters)
    new = distribution(spec, to_torch(after.parameters), samples.observations)
    kl = kl_divergence(old, new).reshape(samples.weights.shape)
    squared_norm = sum(float(part.double().square().sum()) for part in gradient.values())
    return AdaptationStats(
        kl=float((kl * samples.weights).sum()),
        gradient_norm=squared_norm**0.5,
        support_return=float(support.returns.mean()),
        env_steps=support.env_steps,
    )
