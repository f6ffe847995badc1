"""The inner loop: gradient steps that the outer loop can differentiate through.

The general one: whatever :mod:`~maml_ray.backends.coverage` leaves out goes by it, at the rollout
actors,
which want the adapted numbers, and at the learner, which wants their derivative with respect to
the parameters they started from; what is covered is held against it. A function of functions, it
knows nothing of policies: Finn et al. 2017 (https://arxiv.org/abs/1703.03400), algorithm 1, line 6.
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


def differentiable_gradient(loss: Loss[Aux], parameters: Parameters) -> tuple[Parameters, Aux]:
    """The gradient as a function that can itself be differentiated and vectorized, and the aux."""
    gradient, aux = torch.func.grad(loss, has_aux=True)(parameters)
    return gradient, aux


def plain_gradient(loss: Loss[Aux], parameters: Parameters) -> tuple[Parameters, Aux]:
    """The same numbers and nothing more, for whoever only acts on them.

    The first transform of ``torch.func`` has PyTorch import its compiler, for more than a second;
    this does not.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        value, aux = loss(leaves)
        gradient = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradient, strict=True)), aux


def adapt(
    parameters: Parameters,
    losses: Sequence[Loss[Aux]],
    learning_rate: float | Mapping[str, Tensor],
    *,
    order: Order = "second",
    gradient_of: Callable[
        [Loss[Aux], Parameters], tuple[Parameters, Aux]
    ] = differentiable_gradient,
) -> tuple[Parameters, tuple[Aux, ...]]:
    """Take one gradient step per element of ``losses``: ``theta <- theta - rate * grad loss``.

    Args:
        parameters: where to start. Never written to: assigning ``.data`` or loading a state
            dictionary here is what empties the meta-gradient of the source notebook.
        losses: one function a step, from parameters to ``(scalar loss, aux)``; several steps
            use one each, since each has support data of its own.
        learning_rate: the inner rate, alpha: one number, or one of each parameter's shape, which
            the outer loop can differentiate too (Meta-SGD, Li et al. 2017,
            https://arxiv.org/abs/1707.09835).
        order: ``"second"`` keeps the derivative of each step's gradient; ``"first"`` drops it,
            so that the step's Jacobian is the identity (first-order MAML).
        gradient_of: takes the gradient; :func:`plain_gradient` where no outer loop is.

    Returns:
        The adapted parameters, and what each loss returned beside its value.
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
    """Have torch import what its transforms need, about a second, ahead of the first step."""
    adapt({"x": torch.zeros(1)}, [lambda theta: (theta["x"].sum(), theta["x"])], 0.1)
