"""The meta-gradient: by hand where that is written down, and by autograd everywhere else.

Axes: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maml_ray.backends.analytic_gradient import analytic_meta_gradient, analytic_meta_loss
from maml_ray.backends.compiled import (
    compiled_meta_gradient,
    compiled_meta_value,
    compiled_task_gradients,
    goes_by_loops,
)
from maml_ray.backends.coverage import is_covered
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch, MetaObjective, meta_loss

Found = tuple[Tensor, Diagnostics, Parameters]


def meta_gradient(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> Found:
    """The outer objective at ``parameters``, what it tells, and its gradient by name.

    Means over the tasks of ``batch``, whichever ``passes`` they go in.
    """
    if goes_by_loops(objective.settings, objective.spec, batch.credit.device):
        return compiled_meta_gradient(objective, parameters, batch, passes)
    found = passes.each(
        lambda piece: (len(piece.credit), *_of_piece(objective, parameters, piece)), batch
    )
    return _mean(found)


def meta_value(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> tuple[Tensor, Diagnostics]:
    """The same without the gradient."""
    if goes_by_loops(objective.settings, objective.spec, batch.credit.device):
        return compiled_meta_value(objective, parameters, batch, passes)

    @torch.no_grad()  # which each thread has to be told
    def of_piece(piece: MetaBatch) -> tuple[int, Tensor, Diagnostics, Parameters]:
        by_hand = is_covered(objective.settings, objective.spec)
        value = analytic_meta_loss if by_hand else meta_loss
        return len(piece.credit), *value(objective, parameters, piece), {}

    loss, diagnostics, _ = _mean(passes.each(of_piece, batch))
    return loss, diagnostics


def task_gradients(
    objective: MetaObjective,
    parameters: Parameters,
    batch: MetaBatch,
    passes: Passes = WHOLE,
) -> Tensor:
    """The meta-gradient (N, P) of every task alone; their mean is the meta-batch's."""
    if goes_by_loops(objective.settings, objective.spec, batch.credit.device):
        return compiled_task_gradients(objective, parameters, batch, passes)

    def of_piece(piece: MetaBatch) -> Tensor:
        alone = Passes(1).each(lambda task: _of_piece(objective, parameters, task)[2], piece)
        return torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in alone])

    return passes.joined(of_piece, batch)


def _of_piece(objective: MetaObjective, parameters: Parameters, batch: MetaBatch) -> Found:
    if is_covered(objective.settings, objective.spec):
        return analytic_meta_gradient(objective, parameters, batch)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss, diagnostics = meta_loss(objective, leaves, batch)
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
