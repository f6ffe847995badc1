"""Take inner gradient steps that the outer loop can differentiate through.

The inner loop of MAML (Finn et al. 2017, https://arxiv.org/abs/1703.03400, algorithm 1, line 6) as
a function of functions: it knows nothing of policies. The ``autograd`` backend uses it, and so
defines what the compiled kernels must compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Aux = TypeVar("Aux")
Order = Literal["second", "first"]
Loss = Callable[[Parameters], tuple[Tensor, Aux]]
GradientOf = Callable[[Loss[Aux], Parameters], tuple[Parameters, Aux]]


def differentiable_gradient(loss: Loss[Aux], parameters: Parameters) -> tuple[Parameters, Aux]:
    """Return the gradient, which can be differentiated and vectorized again, and the aux."""
    gradient, aux = torch.func.grad(loss, has_aux=True)(parameters)
    return gradient, aux


def plain_gradient(loss: Loss[Aux], parameters: Parameters) -> tuple[Parameters, Aux]:
    """Return the gradient without a graph, and the aux.

    Unlike the first transform of ``torch.func``, this does not make PyTorch import its compiler,
    which takes more than a second.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        value, aux = loss(leaves)
        gradient = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradient, strict=True)), aux


def adapt(
    parameters: Parameters,
    losses: Sequence[Loss[Aux]],
    learning_rate: float | Mapping[str, float | Tensor],
    *,
    order: Order = "second",
    gradient_of: GradientOf[Aux] = differentiable_gradient,
) -> tuple[Parameters, tuple[Aux, ...]]:
    """Take one gradient step per element of ``losses``: ``theta <- theta - rate * grad loss``.

    Args:
        parameters: before the first step. Never written to: assigning ``.data`` or loading a state
            dictionary here would cut the meta-gradient, as in the source notebook.
        losses: one function per step, from parameters to ``(scalar loss, aux)``; each step has
            support data of its own.
        learning_rate: the inner rate, alpha: one number, or one per parameter, which may be a
            tensor of its shape that the outer loop can differentiate too (Meta-SGD, Li et al.
            2017, https://arxiv.org/abs/1707.09835).
        order: ``"second"`` keeps the derivative of each step's gradient; ``"first"`` drops it,
            so that the step's Jacobian is the identity (first-order MAML).
        gradient_of: computes the gradient; :func:`plain_gradient` if there is no outer loop.

    Returns:
        The adapted parameters, and the aux of each loss.
    """
    collected: list[Aux] = []

    def rate_of(name: str) -> float | Tensor:
        return learning_rate if isinstance(learning_rate, float) else learning_rate[name]

    for loss in losses:
        gradients, aux = gradient_of(loss, parameters)
        if order == "first":
            gradients = {name: gradient.detach() for name, gradient in gradients.items()}
        parameters = {
            name: value - rate_of(name) * gradients[name] for name, value in parameters.items()
        }
        collected.append(aux)
    return parameters, tuple(collected)


def warm_up() -> None:
    """Make PyTorch import what its transforms need (about a second) ahead of the first step."""
    adapt({"x": torch.zeros(1)}, [lambda theta: (theta["x"].sum(), theta["x"])], 0.1)
