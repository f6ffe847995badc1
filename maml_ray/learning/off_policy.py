"""Query data of the version before, seen from today's parameters.

What bounds an update, the clip of the ratio and the KL of a trust region, is meant to bound how far
it moves the policy. Around the policies that collected, of one version ago, the update before this
one would have used up a part of it: with a clip of 0.3 half-cheetah-backward learns half as fast.
So the ratio to the policies that collected is taken apart (Hilton et al. 2021,
https://arxiv.org/abs/2110.00641, the decoupled objective):

    pi / pi_collected = pi / pi_today * w,    w = pi_today / pi_collected

The first factor is what is clipped, and today's policies, adapted to the same support data, are
what the KL is measured from. The second is a constant, and goes into the advantages: no objective
knows of it, and the loss is weighed by the whole ratio, as it should be.
"""

from __future__ import annotations

import torch

from maml_ray.backends.collectors import policies_at
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.losses import log_probs_of
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec


def recentered(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> MetaBatch:
    """``batch`` with its query as if ``parameters`` had collected it, but for the weights.

    Support data and the policies that collected them are left alone: an inner step weighs by the
    whole ratio and is not clipped, and the inner KL is from those policies.
    """
    _, today = policies_at(settings, spec, parameters, batch.support, batch.query, passes)
    log_probs = torch.func.vmap(log_probs_of)(today, batch.query)
    weights = torch.exp(log_probs - batch.query.log_probs)
    query = batch.query._replace(log_probs=log_probs, advantages=weights * batch.query.advantages)
    return batch._replace(query=query, query_collector=today)
