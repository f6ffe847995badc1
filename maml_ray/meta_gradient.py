"""The meta-gradient: by hand where that is written down, and by autograd everywhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from maml_ray.adaptation import Order
from maml_ray.analytic_gradient import analytic_meta_gradient, is_covered
from maml_ray.config import Settings
from maml_ray.meta_objective import Diagnostics, MetaBatch, meta_loss
from maml_ray.policy import Parameters, PolicySpec


def meta_gradient(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    *,
    order: Order,
) -> tuple[Tensor, Diagnostics, Parameters]:
    """The outer objective at ``parameters``, what it tells, and its gradient by name."""
    if is_covered(settings, spec):
        return analytic_meta_gradient(settings, spec, parameters, batch, order=order)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss, diagnostics = meta_loss(settings, spec, leaves, batch, order=order)
    gradient = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.detach(), diagnostics, dict(zip(leaves, gradient, strict=True))
