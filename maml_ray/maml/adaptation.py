"""Adapt the policy to one task: choose what takes the inner steps, and return the adapted policy.

With ``inner.parameters``:

- ``all``: the policy's parameters (MAML, Finn et al. 2017, https://arxiv.org/abs/1703.03400);
- ``head``: the last layer's (ANIL, Raghu et al. 2020, https://arxiv.org/abs/1909.09157);
- ``context``: a vector z (C,), 0 before the first step, from which the first hidden layer has the
  further input W tanh(z) (CAVIA, Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642, where it
  is W z, which a noisy gradient can move without bound).

Since W tanh(z) is added to a bias, an adapted policy is an ordinary one whose bias has moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from maml_ray.config.settings import InnerSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters
from maml_ray.maml.inner_loop import GradientOf, Order, adapt, differentiable_gradient
from maml_ray.maml.meta_parameters import CONTEXT, CONTEXT_WEIGHT, inner_rates, policy_part
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.policies.spec import PolicySpec


def adapt_to_task(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Parameters,
    support: Sequence[Samples[Tensor]],
    *,
    order: Order = "second",
    gradient_of: GradientOf[ActionDistribution] = differentiable_gradient,
) -> tuple[Parameters, tuple[ActionDistribution, ...]]:
    """Take one inner step per element of ``support``.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: meta-parameters; after earlier inner steps also the context, if there is one.
        support: samples of one task for each step.
        order: of the derivatives; see :func:`~maml_ray.maml.inner_loop.adapt`.
        gradient_of: computes the inner gradients; see there.

    Returns:
        The adapted policy's parameters, with the context if there is one, and the action
        distributions before each step at its samples.
    """
    if inner.parameters == "context" and CONTEXT not in parameters:
        weight = parameters[CONTEXT_WEIGHT]
        parameters = {**parameters, CONTEXT: weight.new_zeros(weight.shape[1])}
    rates = inner_rates(inner, spec, parameters, torch.exp)
    moving = {name: parameters[name] for name in rates}

    def loss(
        samples: Samples[Tensor], moved: Mapping[str, Tensor]
    ) -> tuple[Tensor, ActionDistribution]:
        return inner_loss(spec, inner, samples, _policy_with(spec, parameters, moved))

    losses = [partial(loss, samples) for samples in support]
    moved, policies = adapt(moving, losses, rates, order=order, gradient_of=gradient_of)
    return {**_policy_with(spec, parameters, moved), **moved}, policies


def _policy_with(
    spec: PolicySpec, parameters: Parameters, moved: Mapping[str, Tensor]
) -> Parameters:
    """Return the policy's parameters after inner steps on ``moved``: parameters, or the context."""
    policy = policy_part(parameters)
    if CONTEXT not in moved:
        return {**policy, **moved}
    bias = f"{spec.layer_names[0]}.bias"  # which holds the effect of the context so far
    change = torch.tanh(moved[CONTEXT]) - torch.tanh(parameters[CONTEXT])
    return {**policy, bias: policy[bias] + parameters[CONTEXT_WEIGHT] @ change}
