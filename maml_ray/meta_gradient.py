"""The meta-gradient: by hand where that is written down, and by autograd everywhere else.

Axes: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maml_ray.adaptation import Order
from maml_ray.analytic_gradient import (
    analytic_meta_gradient,
    analytic_meta_loss,
    is_covered,
)
from maml_ray.compiled_gradient import (
    compiled_meta_gradient,
    compiled_meta_value,
    compiled_task_gradients,
    goes_by_loops,
)
from maml_ray.config import Settings
from maml_ray.meta_objective import Diagnostics, MetaBatch, meta_loss
from maml_ray.passes import WHOLE, Passes
from maml_ray.policy import Parameters, PolicySpec

Found = tuple[Tensor, Diagnostics, Parameters]


def meta_gradient(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    *,
    order: Order,
    passes: Passes = WHOLE,
) -> Found:
    """The outer objective at ``parameters``, what it tells, and its gradient by name.

    Means over the tasks of ``batch``, whichever ``passes`` they go in.
    """
    if goes_by_loops(settings, spec, batch.credit.device):
        told = (settings, spec, parameters, batch)
        return compiled_meta_gradient(*told, order=order, passes=passes)
    found = passes.each(
        lambda piece: (len(piece.credit), *_of_piece(settings, spec, parameters, piece, order)),
        batch,
    )
    return _mean(found)


def meta_value(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    *,
    order: Order,
    passes: Passes = WHOLE,
) -> tuple[Tensor, Diagnostics]:
    """The same without the gradient."""
    if goes_by_loops(settings, spec, batch.credit.device):
        told = (settings, spec, parameters, batch)
        return compiled_meta_value(*told, order=order, passes=passes)

    @torch.no_grad()  # which each thread has to be told
    def of_piece(piece: MetaBatch) -> tuple[int, Tensor, Diagnostics, Parameters]:
        value = analytic_meta_loss if is_covered(settings, spec) else meta_loss
        return len(piece.credit), *value(settings, spec, parameters, piece, order=order), {}

    loss, diagnostics, _ = _mean(passes.each(of_piece, batch))
    return loss, diagnostics


def task_gradients(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    *,
    order: Order,
    passes: Passes = WHOLE,
) -> Tensor:
    """The meta-gradient (N, P) of every task alone; their mean is the meta-batch's."""
    if goes_by_loops(settings, spec, batch.credit.device):
        told = (settings, spec, parameters, batch)
        return compiled_task_gradients(*told, order=order, passes=passes)

    def of_piece(piece: MetaBatch) -> Tensor:
        alone = Passes(1).each(
            lambda task: _of_piece(settings, spec, parameters, task, order)[2], piece
        )
        return torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in alone])

    return passes.joined(of_piece, batch)


def _of_piece(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch, order: Order
) -> Found:
    if is_covered(settings, spec):
        return analytic_meta_gradient(settings, spec, parameters, batch, order=order)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss, diagnostics = meta_loss(settings, spec, leaves, batch, order=order)
    gradient = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.detach(), diagnostics, dict(zip(leaves, gradient, strict=True))


def _mean(found: Sequence[tuple[int, Tensor, Diagnostics, Parameters]]) -> Found:
    """Of pieces of so many tasks each: their mean, a task for a task."""
    if len(found) == 1:
        return found[0][1:]
    tasks = sum(count for count, *_ in found)
    shares = [count / tasks for count, *_ in found]

    def mean(values: Sequence[Tensor]) -> Tensor:
        total = shares[0] * values[0]
        for share, value in zip(shares[1:], values[1:], strict=True):
            total = total + share * value
        return total

    told = [diagnostics for _, _, diagnostics, _ in found]
    averaged = Diagnostics(*(mean(field) for field in zip(*told, strict=True)))
    largest = torch.stack([one.largest_ratio_error for one in told]).max()
    gradients = [gradient for *_, gradient in found]
    return (
        mean([loss for _, loss, _, _ in found]),
        averaged._replace(largest_ratio_error=largest),
        {name: mean([gradient[name] for gradient in gradients]) for name in gradients[0]},
    )
