"""The surrogate losses of the inner and the outer loop: one place, no copies.

Every loss is a mean over the steps taken of one task (episodes and time together); tasks are
averaged by the outer loop alone. Axes: S = K T steps of one task, A action size.

The inner losses have the same value-independent first derivative, the policy gradient, and
differ in their second, which is what the meta-gradient sees:

- ``ratio``: ``-mean(ratio * advantage)`` with ``ratio = pi / pi_collected``. Its second
  derivative keeps the square of the score: ProMP's low-variance curvature (Rothfuss et al. 2019,
  https://arxiv.org/abs/1810.06784, equation 9).
- ``log_prob``: ``-mean(log pi * advantage)``, the source notebook's (Williams 1992). Its second
  derivative lacks that square: a biased meta-gradient, kept for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.config import InnerSettings
from maml_ray.normalisation import Normaliser
from maml_ray.policy import Gaussian, Parameters, PolicySpec, distribution, log_prob
from maml_ray.trajectories import Trajectories


class Samples(NamedTuple):
    """The steps of one task and phase, flattened; with a leading axis, of many tasks.

    Attributes:
        observations: (S, D), normalised where the policy wants it.
        actions: (S, A).
        log_probs: (S,) of the policy that collected them, constants.
        advantages: (S,).
        weights: (S,) 1 / number of steps taken, 0 after an episode's end: a mean is a dot product.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    weights: Tensor


def make_samples(
    trajectories: Trajectories,
    advantages: NDArray[np.float32],
    normaliser: Normaliser | None = None,
) -> Samples:
    """Flatten trajectories and their advantages (K, T) into CPU tensors.

    Observations go through the ``normaliser`` that the collecting policy used, if it used one.
    Copies: what comes from Ray's object store is read-only, which torch cannot express.
    """
    steps = trajectories.mask.size
    observations = trajectories.observations
    if normaliser is not None:
        observations = normaliser(observations)
    weights = trajectories.mask.reshape(steps) / np.float32(max(trajectories.env_steps, 1))
    return Samples(
        observations=torch.tensor(observations.reshape(steps, -1)),
        actions=torch.tensor(trajectories.actions.reshape(steps, -1)),
        log_probs=torch.tensor(trajectories.log_probs.reshape(steps)),
        advantages=torch.tensor(advantages.reshape(steps)),
        weights=torch.tensor(weights.astype(np.float32)),
    )


def policy_gradient_loss(
    kind: Literal["ratio", "log_prob"], new_log_probs: Tensor, samples: Samples
) -> Tensor:
    """A loss whose gradient, at the policy that collected ``samples``, is the policy gradient.

    Args:
        kind: see the module's docstring.
        new_log_probs: (S,) under the parameters to differentiate, recomputed from the samples'
            observations and actions.
        samples: the steps.

    Returns:
        A scalar.
    """
    _check_same_shape(new_log_probs, samples)
    if kind == "ratio":
        score = torch.exp(new_log_probs - samples.log_probs)
    else:
        score = new_log_probs
    return -(score * samples.advantages * samples.weights).sum()


def clipped_loss(new_log_probs: Tensor, samples: Samples, clip: float) -> Tensor:
    """PPO's clipped surrogate: ``-mean(min(r A, clamp(r, 1 - clip, 1 + clip) A))``.

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7; applied to the adapted
    policy on query data it is ProMP's outer objective.

    Args:
        new_log_probs: (S,) under the adapted parameters to differentiate.
        samples: query steps, collected by the adapted policy before the update.
        clip: epsilon, how far the ratio may move and still be rewarded.

    Returns:
        A scalar.
    """
    _check_same_shape(new_log_probs, samples)
    ratio = torch.exp(new_log_probs - samples.log_probs)
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    gain = torch.minimum(ratio * samples.advantages, clipped * samples.advantages)
    return -(gain * samples.weights).sum()


def inner_loss(
    spec: PolicySpec,
    parameters: Mapping[str, Tensor],
    samples: Samples,
    *,
    kind: Literal["ratio", "log_prob"],
    l2: float,
) -> tuple[Tensor, Gaussian]:
    """The loss of one inner step on support data, and the action distribution it went through.

    Args:
        spec: the policy's sizes.
        parameters: the parameters before the step.
        samples: support steps of one task, collected with these parameters.
        kind: which policy-gradient loss.
        l2: weight on the sum of squares of all parameters, as in the source notebook.

    Returns:
        A scalar, and the :class:`~maml_ray.policy.Gaussian` at the samples' observations.
    """
    gaussian = distribution(spec, parameters, samples.observations)
    loss = policy_gradient_loss(kind, log_prob(gaussian, samples.actions), samples)
    if l2 > 0.0:
        loss = loss + l2 * sum(value.square().sum() for value in parameters.values())
    return loss, gaussian


def inner_losses(
    spec: PolicySpec, settings: InnerSettings, support: Sequence[Samples]
) -> list[Callable[[Parameters], tuple[Tensor, Gaussian]]]:
    """One loss per inner step, as :func:`~maml_ray.adaptation.adapt` takes them."""
    return [partial(_inner_loss_at, spec, settings, samples) for samples in support]


def _inner_loss_at(
    spec: PolicySpec, settings: InnerSettings, samples: Samples, parameters: Parameters
) -> tuple[Tensor, Gaussian]:
    return inner_loss(spec, parameters, samples, kind=settings.objective, l2=settings.l2)


def _check_same_shape(new_log_probs: Tensor, samples: Samples) -> None:
    """A silent broadcast of (S,) against (S, 1) would average over S squared terms."""
    shapes = {tuple(new_log_probs.shape)} | {
        tuple(part.shape) for part in (samples.log_probs, samples.advantages, samples.weights)
    }
    if len(shapes) != 1 or new_log_probs.ndim != 1:
        raise ValueError(f"log-probabilities, advantages and weights must be (S,), got {shapes}")
