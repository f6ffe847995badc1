"""The policy's perceptron and its first and second derivatives, in batches over many tasks.

What a GPU does well; on a CPU :mod:`~maml_ray.kernels.mlp` go a task at a time.

What a pass forward and back leaves behind is enough for the derivative of that gradient along a
direction (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147): one more pass forward, of
the direction, and one more back.

Axes: N tasks, S samples of a task, I inputs and O outputs of a layer. Weights are (O, I) where all
tasks share them, or (N, O, I); biases alike. Slopes and gradients always have the axis N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maml_ray.policies.spec import PolicySpec

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Forward:
    """A pass forward.

    Attributes:
        spec: sizes of the network.
        values: its weights and biases.
        inputs: of each layer (N, S, I), the observations first.
        bends: derivative of the activation that gave each input; None of the observations.
        output: (N, S, O) of the last layer.
    """

    spec: PolicySpec
    values: Values
    inputs: tuple[Tensor, ...]
    bends: tuple[Tensor | None, ...]
    output: Tensor


@dataclass(frozen=True)
class Backward:
    """A pass back.

    Attributes:
        slopes: of the loss with respect to what each layer gives (N, S, O), before its activation.
        gradient: of the loss with respect to weights and biases.
    """

    slopes: tuple[Tensor, ...]
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Push:
    """A pass forward of a direction in the space of weights and biases.

    Attributes:
        direction: the direction.
        before: derivative along it of what each hidden layer gives, before its activation.
        inputs: derivative of each layer's input; None of the observations, which are what they are.
        output: derivative of the output.
    """

    direction: Values
    before: tuple[Tensor, ...]
    inputs: tuple[Tensor | None, ...]
    output: Tensor


def forward(spec: PolicySpec, values: Values, observations: Tensor) -> Forward:
    """The network at ``observations`` (N, S, D)."""
    inputs, bends = [observations], list[Tensor | None]([None])
    for name in spec.layer_names[:-1]:
        activated, bend = _activate(spec, _layer(values, name, inputs[-1]))
        inputs.append(activated)
        bends.append(bend)
    output = _layer(values, spec.head, inputs[-1])
    return Forward(spec, values, tuple(inputs), tuple(bends), output)


def backward(passed: Forward, slope: Tensor) -> Backward:
    """From the ``slope`` of a loss with respect to the output (N, S, O) to its gradient."""
    names, slopes, gradient = passed.spec.layer_names, [slope], dict[str, Tensor]()
    for index in reversed(range(len(names))):
        _note(gradient, names[index], slopes[0], passed.inputs[index])
        bend = passed.bends[index]
        if bend is not None:
            behind = _through(slopes[0], passed.values[f"{names[index]}.weight"])
            slopes.insert(0, behind.mul_(bend))
    return Backward(tuple(slopes), gradient)


def push(passed: Forward, direction: Values) -> Push:
    """The derivative of a pass forward along ``direction``, each task its own."""
    before: list[Tensor] = []
    inputs: list[Tensor | None] = [None]
    for index, name in enumerate(passed.spec.layer_names):
        moved = _layer(direction, name, passed.inputs[index])
        change = inputs[-1]
        if change is not None:
            _add_through(moved, change, passed.values[f"{name}.weight"].mT)
        before.append(moved)
        bend = passed.bends[index + 1] if index + 1 < len(passed.bends) else None
        inputs.append(moved * bend if bend is not None else None)
    return Push(direction, tuple(before[:-1]), tuple(inputs[:-1]), before[-1])


def push_backward(passed: Forward, back: Backward, pushed: Push, slope: Tensor) -> Backward:
    """The derivative of a pass back along the direction of ``pushed``.

    Args:
        passed: the pass forward.
        back: the pass back of the loss.
        pushed: the direction, passed forward.
        slope: derivative along it of the loss's slope with respect to the output (N, S, O).
    """
    names, slopes, gradient = passed.spec.layer_names, [slope], dict[str, Tensor]()
    for index in reversed(range(len(names))):
        name, change, bend = names[index], pushed.inputs[index], passed.bends[index]
        _note(gradient, name, slopes[0], passed.inputs[index])
        if change is None or bend is None:
            continue
        gradient[f"{name}.weight"].baddbmm_(back.slopes[index].mT, change)
        behind = _through(slopes[0], passed.values[f"{name}.weight"])
        _add_through(behind, back.slopes[index], pushed.direction[f"{name}.weight"])
        behind.mul_(bend)
        if passed.spec.activation == "tanh":  # tanh'' is -2 tanh tanh'; that of relu is none
            both = back.slopes[index - 1] * passed.inputs[index]
            behind.addcmul_(both, pushed.before[index - 1], value=-2.0)
        slopes.insert(0, behind)
    return Backward(tuple(slopes), gradient)


def _activate(spec: PolicySpec, before: Tensor) -> tuple[Tensor, Tensor]:
    """The activation, in place, and its derivative."""
    if spec.activation == "relu":
        activated = functional.relu_(before)
        return activated, activated.sign()
    before.tanh_()
    return before, before.square().neg_().add_(1.0)


def _note(gradient: dict[str, Tensor], name: str, slope: Tensor, inputs: Tensor) -> None:
    gradient[f"{name}.weight"] = torch.bmm(slope.mT, inputs)
    gradient[f"{name}.bias"] = slope.sum(dim=1)


def _layer(values: Values, name: str, inputs: Tensor) -> Tensor:
    weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]
    if weight.ndim == 2:
        return functional.linear(inputs, weight, bias)
    return torch.baddbmm(bias[:, None], inputs, weight.mT)


def _through(slope: Tensor, weight: Tensor) -> Tensor:
    """``slope`` (N, S, O) times a weight (O, I), shared or of each task: (N, S, I)."""
    return slope @ weight if weight.ndim == 2 else torch.bmm(slope, weight)


def _add_through(total: Tensor, slope: Tensor, weight: Tensor) -> None:
    """Add ``slope`` times a weight, as :func:`_through`, to ``total`` (N, S, I)."""
    if weight.ndim == 2:
        total.flatten(end_dim=1).addmm_(slope.flatten(end_dim=1), weight)
    else:
        total.baddbmm_(slope, weight)
