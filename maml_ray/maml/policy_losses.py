"""Evaluate losses of log-probabilities as functions of the policy's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maml_ray.config.sections import InnerSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, distribution, log_prob
from maml_ray.maml.losses import INNER_LOSSES
from maml_ray.policies.spec import PolicySpec


def sample_log_probs(policy: ActionDistribution, samples: Samples[Tensor]) -> Tensor:
    """Return log-probabilities (K, T) of the samples' actions under ``policy``."""
    return log_prob(policy, samples.actions).reshape(samples.log_probs.shape)


def inner_loss(
    spec: PolicySpec,
    inner: InnerSettings,
    samples: Samples[Tensor],
    parameters: Mapping[str, Tensor],
) -> tuple[Tensor, ActionDistribution]:
    """Return the loss of one inner step, and the policy's action distribution at the samples.

    Args:
        spec: the policy's sizes.
        inner: its objective, and ``l2``, the weight of the sum of squared parameters (as in the
            source notebook).
        samples: support samples of one task, collected with these parameters.
        parameters: the policy's, before the step.
    """
    policy = distribution(spec, parameters, samples.observations)
    loss = INNER_LOSSES[inner.objective](sample_log_probs(policy, samples), samples)
    if inner.l2 > 0.0:
        loss = loss + inner.l2 * sum(value.square().sum() for value in parameters.values())
    return loss, policy
