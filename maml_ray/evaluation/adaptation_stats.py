"""Measure one inner step: KL divergence, gradient norm and return of the support set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from maml_ray.common.normalization import normalize
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import (
    distribution,
    kl_divergence,
    samples_to_torch,
    to_torch,
)
from maml_ray.maml.meta_parameters import policy_part
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.rollouts.samples import make_support
from maml_ray.rollouts.trajectories import Trajectories


@dataclass(frozen=True)
class AdaptationStats:
    """Statistics of one inner step.

    Attributes:
        kl: KL divergence in nats from the policy before the step to the one after it, mean over
            the steps of the support set.
        gradient_norm: Euclidean norm of the gradient that the step follows: of the inner loss at
            the parameters before the step, or of the return per step by a context.
        support_return: mean undiscounted return of the support set's episodes.
        env_steps: environment steps in the support set.
    """

    kl: float
    gradient_norm: float
    support_return: float
    env_steps: int


def adaptation_stats(before: Agent, after: Agent, support: Trajectories) -> AdaptationStats:
    """Return statistics of the inner step from ``before`` to ``after`` on ``support``."""
    spec = before.spec
    observations = torch.from_numpy(normalize(support.observations, before.normalizer))
    old, new = (
        distribution(spec, to_torch(agent.parameters), observations) for agent in (before, after)
    )
    mask = torch.from_numpy(support.mask)
    return AdaptationStats(
        kl=float(kl_divergence(old, new)[mask].mean()),
        gradient_norm=_gradient_norm(before, support),
        support_return=float(support.returns.mean()),
        env_steps=support.env_steps,
    )


def _gradient_norm(before: Agent, support: Trajectories) -> float:
    """Return the norm of the gradient that the inner step follows."""
    inner = before.settings.inner
    data = make_support(inner, before.settings.advantages, support, before.normalizer)
    if isinstance(data, np.ndarray):
        return float(np.linalg.norm(data.astype(np.float64)))
    loss = partial(inner_loss, before.spec, inner, samples_to_torch(data))
    gradient, _ = torch.func.grad(loss, has_aux=True)(policy_part(to_torch(before.parameters)))
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))
