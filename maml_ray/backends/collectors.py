"""The policies that collected a meta-batch, at its data: by hand, in loops, or by adapting anew."""

from __future__ import annotations

import torch

from maml_ray.backends.analytic_gradient import collecting_policies
from maml_ray.backends.compiled import compiled_policies, goes_by_loops
from maml_ray.backends.coverage import is_covered
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import ActionDistribution, Parameters, distribution
from maml_ray.maml.inner_loop import adapt
from maml_ray.maml.losses import Samples, inner_losses
from maml_ray.maml.meta_parameters import inner_rates, policy_part
from maml_ray.policies.spec import PolicySpec


def policies_at(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: tuple[Samples, ...],
    query: Samples,
    passes: Passes = WHOLE,
) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
    """The distributions at all the data of ``parameters`` and of their adaptations.

    Of the parameters that collected the data, these are the policies that did.
    """
    if goes_by_loops(settings, spec, query.weights.device):
        return compiled_policies(settings, spec, parameters, support, query, passes)
    kind = collecting_policies if is_covered(settings, spec) else _by_adapting
    return passes.joined(lambda phases: kind(settings, spec, parameters, *phases), (support, query))


def _by_adapting(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    support: tuple[Samples, ...],
    query: Samples,
) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
    """The same for whatever policy and inner objective there are."""
    frozen = {name: value.detach() for name, value in parameters.items()}
    rates = inner_rates(settings.inner, frozen, torch.exp)

    def of_task(
        support: tuple[Samples, ...], query: Samples
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        steps = inner_losses(spec, settings.inner, support)
        adapted, on_the_way = adapt(policy_part(frozen), steps, rates, order="first")
        return on_the_way, distribution(spec, adapted, query.observations)

    with torch.no_grad():
        collectors: tuple[tuple[ActionDistribution, ...], ActionDistribution]
        collectors = torch.func.vmap(of_task)(support, query)
    return collectors
