"""How good the meta-gradient is: its noise over tasks, and what the second order adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maml_ray.backends.dispatch import task_gradients
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.meta_objective import MetaBatch, MetaObjective
from maml_ray.policies.spec import PolicySpec


@dataclass(frozen=True)
class GradientDiagnostics:
    """The meta-gradient of one meta-batch, looked at task by task.

    Attributes:
        snr: Euclidean norm of the mean over tasks, divided by the standard error of that mean:
            above 1 there is more signal than noise. None of a single task.
        order_cosine: cosine between the second- and the first-order meta-gradient: 1 where the
            second order adds nothing.
    """

    snr: float | None
    order_cosine: float


def diagnose_gradient(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> GradientDiagnostics:
    """Per-task meta-gradients in both orders; about the cost of two epochs."""
    second, first_order = (
        task_gradients(MetaObjective(settings, spec, order), parameters, batch, passes)
        for order in ("second", "first")
    )
    first = first_order.mean(dim=0)
    mean, tasks = second.mean(dim=0), second.shape[0]
    snr = None
    if tasks > 1:
        standard_error = (second.var(dim=0).sum() / tasks).sqrt()
        snr = float(mean.norm() / standard_error.clamp(min=1e-12))
    return GradientDiagnostics(
        snr=snr,
        order_cosine=float(torch.nn.functional.cosine_similarity(mean, first, dim=0)),
    )
