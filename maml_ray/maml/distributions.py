"""Map observations to action distributions, and compute with these, in PyTorch.

The policy is a multi-layer perceptron. For continuous actions its outputs are the mean of a
diagonal Gaussian, ``a = mu(s) + exp(phi) * eps``, where ``phi`` is a learned vector that does not
depend on the state; for discrete actions they are the logits of a categorical distribution.

These are pure functions of a parameter dictionary, so that the inner loop can differentiate through
its own updates; :mod:`maml_ray.policies.numpy_policy` is the same policy for inference.

Axes: ``...`` any batch axes, ``D`` observation size, ``A`` action size: the dimensions of a
continuous action, the number of discrete ones. A discrete action is recorded as its number, in
an array with a last axis of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maml_ray.kernels.types import Gaussian as Gaussian
from maml_ray.kernels.types import Samples
from maml_ray.policies.spec import LOG_STD, NumpyParameters, PolicySpec

Parameters = dict[str, Tensor]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_TORCH_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
}


class Categorical(NamedTuple):
    """A batch of categorical distributions: ``log_probs`` (..., A), normalized."""

    log_probs: Tensor


ActionDistribution = Gaussian[Tensor] | Categorical


def distribution(
    spec: PolicySpec, parameters: Mapping[str, Tensor], observations: Tensor
) -> ActionDistribution:
    """Return the action distribution at ``observations`` (..., D), normalized beforehand if need
    be.

    The log standard deviation is clamped to ``spec.min_log_std``. Below that floor its gradient is
    zero, so the learner moves the parameter back onto the floor after each step (:func:`project`),
    where its gradient is no longer masked.

    Raises:
        ValueError: the observations have another size than the policy's.
    """
    if observations.shape[-1] != spec.observation_size:
        raise ValueError(
            f"observations must have size {spec.observation_size}, got {tuple(observations.shape)}"
        )
    activation = _TORCH_ACTIVATIONS[spec.activation]
    hidden = observations
    for name in spec.layer_names[:-1]:
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        hidden = activation(functional.linear(hidden, weight, bias))
    output = functional.linear(
        hidden, parameters[f"{spec.head}.weight"], parameters[f"{spec.head}.bias"]
    )
    if spec.discrete:
        return Categorical(torch.log_softmax(output, dim=-1))
    return Gaussian(output, parameters[LOG_STD].clamp(min=spec.min_log_std))


def log_prob(policy: ActionDistribution, actions: Tensor) -> Tensor:
    """Return log-probabilities (...) of ``actions`` (..., A), or (..., 1) of a discrete policy.

    They are summed over action dimensions. An average would turn the likelihood ratio into its
    A-th root.
    """
    if isinstance(policy, Categorical):
        return policy.log_probs.gather(-1, actions.long()).squeeze(-1)
    noise = (actions - policy.mean) * torch.exp(-policy.log_std)
    constant = policy.log_std.sum(-1) + actions.shape[-1] * _HALF_LOG_2PI
    return -0.5 * noise.square().sum(-1) - constant


def kl_divergence(old: ActionDistribution, new: ActionDistribution) -> Tensor:
    """Return KL(old || new) per state (...), in nats.

    For Gaussians ``log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2``, summed over action
    dimensions; for categoricals ``sum p1 log(p1 / p2)``.

    Raises:
        TypeError: one is a Gaussian and the other a categorical distribution.
    """
    if isinstance(old, Categorical) and isinstance(new, Categorical):
        return (torch.exp(old.log_probs) * (old.log_probs - new.log_probs)).sum(-1)
    if not (isinstance(old, Gaussian) and isinstance(new, Gaussian)):
        raise TypeError("both distributions must be Gaussian, or both categorical")
    scale = torch.exp(2.0 * (old.log_std - new.log_std))
    distance = (old.mean - new.mean).square() * torch.exp(-2.0 * new.log_std)
    kl: Tensor = (new.log_std - old.log_std + 0.5 * (scale + distance - 1.0)).sum(-1)
    return kl


def entropy(policy: ActionDistribution) -> Tensor:
    """Return the entropy in nats: (...) of a categorical policy, () of a Gaussian one.

    That of a Gaussian is the differential entropy, which does not depend on the state here.
    """
    if isinstance(policy, Categorical):
        return -(torch.exp(policy.log_probs) * policy.log_probs).sum(-1)
    return (policy.log_std + _HALF_LOG_2PI + 0.5).sum(-1)


def fisher_product(
    policy: ActionDistribution, tangent: ActionDistribution, weights: Tensor
) -> ActionDistribution:
    """Return the Fisher matrix of ``sum(weights * KL(policy || .))`` times ``tangent``.

    The second derivative of the KL divergence at equality, with respect to the distribution's own
    parameters: ``1 / s^2`` for a mean and 2 for a log standard deviation; for normalized
    log-probabilities ``p``, since ``E[d log p d log p]`` is the Fisher information.

    Args:
        policy: where the matrix is taken; batch axes (...).
        tangent: a change of the policy's parameters, of the same shapes.
        weights: (...) of the states.

    Raises:
        TypeError: one is Gaussian and the other categorical.
    """
    if isinstance(policy, Categorical) and isinstance(tangent, Categorical):
        probabilities = torch.exp(policy.log_probs)
        return Categorical(weights[..., None] * probabilities * tangent.log_probs)
    if not (isinstance(policy, Gaussian) and isinstance(tangent, Gaussian)):
        raise TypeError("policy and tangent must both be Gaussian, or both categorical")
    precision = torch.exp(-2.0 * policy.log_std)
    return Gaussian(
        weights[..., None] * precision * tangent.mean, 2.0 * weights.sum() * tangent.log_std
    )


def project(spec: PolicySpec, parameters: Parameters) -> None:
    """Clamp ``log_std`` to its floor, in place (see :func:`distribution`)."""
    if LOG_STD in parameters:
        with torch.no_grad():
            parameters[LOG_STD].clamp_(min=spec.min_log_std)


def to_numpy(parameters: Mapping[str, Tensor]) -> NumpyParameters:
    """Return parameters as float32 NumPy arrays, copied."""
    return {
        name: value.detach().to("cpu", torch.float32).numpy().copy()
        for name, value in parameters.items()
    }


def to_torch(
    parameters: Mapping[str, NDArray[np.float32]], device: torch.device | str = "cpu"
) -> Parameters:
    """Return parameters as tensors on ``device``, copied."""
    return {
        name: torch.tensor(np.asarray(value), device=device) for name, value in parameters.items()
    }


def samples_to_torch(samples: Samples[NDArray[np.float32]]) -> Samples[Tensor]:
    """Return samples as CPU tensors, copied: arrays of Ray's object store are read-only."""
    return Samples(*(torch.tensor(array) for array in samples))
