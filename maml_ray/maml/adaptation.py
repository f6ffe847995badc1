"""Adapt the policy to one task: choose what takes the inner steps, and return the adapted policy.

With ``inner.parameters``:

- ``all``: the policy's parameters follow the gradient of the inner loss (MAML, Finn et al. 2017,
  https://arxiv.org/abs/1703.03400);
- ``head``: the last layer's (ANIL, Raghu et al. 2020, https://arxiv.org/abs/1909.09157);
- ``context``: a vector z (C,), 0 before the first step, from which the first hidden layer has the
  further input W tanh(z) (CAVIA, Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642, where it
  is W z). It is the rate times a gradient of the return at 0 that the support episodes give by
  central differences (:mod:`~maml_ray.policies.context`), as in finite-difference policy gradients.
  Further steps take more episodes into the mean of that gradient, at the same contexts. It is data,
  and the meta-gradient reaches W and the rates through z.

Since W tanh(z) is added to a bias, an adapted policy is an ordinary one whose bias has moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from maml_ray.config.sections import InnerSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters
from maml_ray.maml.inner_loop import GradientOf, Order, adapt, differentiable_gradient
from maml_ray.maml.meta_parameters import inner_rates, policy_part
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.policies.context import CONTEXT, CONTEXT_WEIGHT, first_bias
from maml_ray.policies.spec import PolicySpec


def adapt_to_task(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Parameters,
    support: Sequence[Samples[Tensor]],
    context_gradient: Tensor | None = None,
    *,
    order: Order = "second",
    gradient_of: GradientOf[ActionDistribution] = differentiable_gradient,
) -> tuple[Parameters, tuple[ActionDistribution, ...]]:
    """Take the inner steps.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: meta-parameters.
        support: samples of one task for each step; none for a context.
        context_gradient: (C,) mean of the gradients that the steps of a context follow.
        order: of the derivatives; see :func:`~maml_ray.maml.inner_loop.adapt`. A context has only
            one.
        gradient_of: computes the gradients of inner losses; see there.

    Returns:
        The adapted policy's parameters, with the context if there is one, and the action
        distributions before each step at its samples; none for a context, whose steps need none.
    """
    rates = inner_rates(inner, spec, parameters, torch.exp)
    if inner.parameters == "context":
        assert context_gradient is not None
        return _with_context(spec, parameters, rates[CONTEXT] * context_gradient), ()
    policy = policy_part(parameters)
    moving = {name: policy[name] for name in rates}

    def loss(
        samples: Samples[Tensor], moved: Mapping[str, Tensor]
    ) -> tuple[Tensor, ActionDistribution]:
        return inner_loss(spec, inner, samples, {**policy, **moved})

    losses = [partial(loss, samples) for samples in support]
    moved, policies = adapt(moving, losses, rates, order=order, gradient_of=gradient_of)
    return {**policy, **moved}, policies


def _with_context(spec: PolicySpec, parameters: Parameters, context: Tensor) -> Parameters:
    """Return the policy's parameters with the context ``context`` (C,)."""
    policy, bias = policy_part(parameters), first_bias(spec)
    moved = policy[bias] + parameters[CONTEXT_WEIGHT] @ torch.tanh(context)
    return {**policy, bias: moved, CONTEXT: context}
