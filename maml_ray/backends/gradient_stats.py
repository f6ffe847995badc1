"""Measure the meta-gradient: its noise over tasks, and what the second order adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maml_ray.backends.base import Backend
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.meta_objective import MetaBatch


@dataclass(frozen=True)
class GradientStats:
    """Statistics of the per-task meta-gradients of one meta-batch.

    Attributes:
        snr: Euclidean norm of the mean over tasks, divided by the standard error of that mean:
            above 1 there is more signal than noise. None for a single task.
        order_cosine: cosine between the second- and the first-order meta-gradient: 1 if the second
            order adds nothing.
    """

    snr: float | None
    order_cosine: float


def gradient_stats(backend: Backend, parameters: Parameters, batch: MetaBatch) -> GradientStats:
    """Compute per-task meta-gradients in both orders, at about the cost of two epochs."""
    second = backend.per_task_grads(parameters, batch, "second")
    # Without support samples the orders are one: the gradient that a context follows is data.
    first = backend.per_task_grads(parameters, batch, "first") if batch.support else second
    mean, tasks = second.mean(dim=0), second.shape[0]
    snr = None
    if tasks > 1:
        standard_error = (second.var(dim=0).sum() / tasks).sqrt()
        snr = float(mean.norm() / standard_error.clamp(min=1e-12))
    return GradientStats(
        snr=snr,
        order_cosine=float(torch.nn.functional.cosine_similarity(mean, first.mean(dim=0), dim=0)),
    )
