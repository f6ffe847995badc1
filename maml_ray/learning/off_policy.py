"""Correct query data of the previous version for the current parameters.

The clip of the ratio and the KL of a trust region are meant to bound how far an update moves the
policy. Measured from the behavior policies, of one version ago, the previous update would have used
up a part of that bound: with a clip of 0.3, half-cheetah-backward learns half as fast. So the ratio
to the behavior policies is decoupled (Hilton et al. 2021, https://arxiv.org/abs/2110.00641):

    pi / pi_behavior = pi / pi_current * w,    w = pi_current / pi_behavior

The first factor is clipped, and the KL is measured from the current policies, adapted to the same
support data. The second is a constant that multiplies the advantages, so that the objectives need
no special case and the loss is weighted by the whole ratio.
"""

from __future__ import annotations

import torch

from maml_ray.backends.base import Backend
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.maml.policy_losses import sample_log_probs


def decouple_behavior(backend: Backend, parameters: Parameters, batch: MetaBatch) -> MetaBatch:
    """Return ``batch`` with its query data as if collected by ``parameters``, and reweighted.

    Support data and their behavior policies stay: an inner step weights by the whole ratio and is
    not clipped, and the inner KL is measured from those policies.
    """
    _, current = backend.behavior_policies(
        parameters, batch.support, batch.query, batch.context_gradient
    )
    log_probs = torch.func.vmap(sample_log_probs)(current, batch.query)
    weights = torch.exp(log_probs - batch.query.log_probs)
    query = batch.query._replace(log_probs=log_probs, advantages=weights * batch.query.advantages)
    return batch._replace(query=query, query_behavior=current)
