"""The surrogate losses of the inner and the outer loop: one place, no copies.

Every loss is a mean over the steps taken of one task (episodes and time together); tasks are
averaged by the outer loop alone. Axes: K episodes, T steps, S = K T, A action size.

The inner losses have the same first derivative, the policy gradient, and differ in their second,
which is what the meta-gradient sees. With ``s_t`` the score, the gradient of ``log pi`` at step t:

- ``ratio``: ``-mean(pi / pi_collected * advantage)``. Its second derivative keeps each step's own
  ``s_t s_t^T``: ProMP's low-variance curvature, slightly biased (Rothfuss et al. 2019,
  https://arxiv.org/abs/1810.06784, equation 9).
- ``dice``: keeps the products with all earlier steps' scores, ``s_t s_u^T`` for ``u < t``, too:
  unbiased, and of a variance that grows with the horizon (Foerster et al. 2018,
  https://arxiv.org/abs/1802.05098, in the form for advantages of Farquhar et al. 2019,
  https://arxiv.org/abs/1909.10549, equation 9).
- ``log_prob``: ``-mean(log pi * advantage)``, the source notebook's (Williams 1992). Keeps none of
  the products: a biased meta-gradient, kept for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import InnerSettings
from maml_ray.maml.distributions import ActionDistribution, Parameters, distribution, log_prob
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.samples import sample_arrays
from maml_ray.rollouts.trajectories import Trajectories

InnerObjective = Literal["ratio", "dice", "log_prob"]


class Samples(NamedTuple):
    """The steps of one task and phase; with a leading axis, of many tasks.

    What goes through the network is flat: one large matrix product, also under vmap.

    Attributes:
        observations: (S, D), episode after episode, normalized where the policy wants it.
        actions: (S, A), or (S, 1) discrete.
        log_probs: (K, T) of the policy that collected them, constants.
        advantages: (K, T).
        weights: (K, T) 1 / number of steps taken, 0 after an episode's end: a mean is a dot
            product.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    weights: Tensor


def make_samples(
    trajectories: Trajectories,
    advantages: NDArray[np.float32],
    normalizer: Normalizer | None = None,
) -> Samples:
    """The same as CPU tensors.

    Copies: what comes from Ray's object store is read-only, which torch cannot express.
    """
    arrays = sample_arrays(trajectories, advantages, normalizer)
    return Samples(*(torch.tensor(array) for array in arrays))


def log_probs_of(policy: ActionDistribution, samples: Samples) -> Tensor:
    """Log-probabilities (K, T) of the samples' actions under ``policy`` at their observations."""
    return log_prob(policy, samples.actions).reshape(samples.log_probs.shape)


def policy_gradient_loss(kind: InnerObjective, new_log_probs: Tensor, samples: Samples) -> Tensor:
    """A loss whose gradient, at the policy that collected ``samples``, is the policy gradient.

    Args:
        kind: see the module's docstring.
        new_log_probs: (K, T) under the parameters to differentiate, recomputed from the samples'
            observations and actions.
        samples: the steps.

    Returns:
        A scalar.
    """
    _check_same_shape(new_log_probs, samples)
    if kind == "ratio":
        score = torch.exp(new_log_probs - samples.log_probs)
    elif kind == "dice":
        score = _dice_score(new_log_probs, samples)
    else:
        score = new_log_probs
    return -(score * samples.advantages * samples.weights).sum()


def _dice_score(new_log_probs: Tensor, samples: Samples) -> Tensor:
    """``box(log-prob up to t) - box(log-prob before t)`` (K, T), zero in value, every derivative.

    ``box(x) = exp(x - stop_gradient(x))``. What follows an episode's end is left out of the sums.
    """
    taken = torch.where(samples.weights > 0.0, new_log_probs, torch.zeros_like(new_log_probs))
    up_to = torch.cumsum(taken, dim=-1)
    before = up_to - taken
    return torch.exp(up_to - up_to.detach()) - torch.exp(before - before.detach())


def clipped_loss(new_log_probs: Tensor, samples: Samples, clip: float) -> Tensor:
    """PPO's clipped surrogate: ``-mean(min(r A, clamp(r, 1 - clip, 1 + clip) A))``.

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7; applied to the adapted
    policy on query data it is ProMP's outer objective.

    Args:
        new_log_probs: (K, T) under the adapted parameters to differentiate.
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


def sampling_loss(new_log_probs: Tensor, samples: Samples, credit: Tensor) -> Tensor:
    """E-MAML's sampling term: support data that led to a good adapted policy are made likelier.

    ``-credit * mean(pi / pi_collected)``: the gradient of the expected return after adaptation
    with respect to the distribution that the support data are drawn from, which MAML leaves out
    (Stadie et al. 2018, https://arxiv.org/abs/1803.01118, equation 4; averaged over steps and
    with the credit centered over tasks as in ProMP's code).

    Args:
        new_log_probs: (K, T) of the support actions, under the parameters to differentiate.
        samples: support steps.
        credit: () how much better than the others this task went after adaptation.

    Returns:
        A scalar.
    """
    _check_same_shape(new_log_probs, samples)
    ratio = torch.exp(new_log_probs - samples.log_probs)
    return -credit * (ratio * samples.weights).sum()


def inner_loss(
    spec: PolicySpec,
    parameters: Mapping[str, Tensor],
    samples: Samples,
    *,
    kind: InnerObjective,
    l2: float,
) -> tuple[Tensor, ActionDistribution]:
    """The loss of one inner step on support data, and the action distribution it went through.

    Args:
        spec: the policy's sizes.
        parameters: the parameters before the step.
        samples: support steps of one task, collected with these parameters.
        kind: which policy-gradient loss.
        l2: weight on the sum of squares of all parameters, as in the source notebook.

    Returns:
        A scalar, and the distribution at the samples' observations.
    """
    policy = distribution(spec, parameters, samples.observations)
    loss = policy_gradient_loss(kind, log_probs_of(policy, samples), samples)
    if l2 > 0.0:
        loss = loss + l2 * sum(value.square().sum() for value in parameters.values())
    return loss, policy


def inner_losses(
    spec: PolicySpec, settings: InnerSettings, support: Sequence[Samples]
) -> list[Callable[[Parameters], tuple[Tensor, ActionDistribution]]]:
    """One loss per inner step, as :func:`~maml_ray.maml.inner_loop.adapt` takes them."""
    return [partial(_inner_loss_at, spec, settings, samples) for samples in support]


def _inner_loss_at(
    spec: PolicySpec, settings: InnerSettings, samples: Samples, parameters: Parameters
) -> tuple[Tensor, ActionDistribution]:
    return inner_loss(spec, parameters, samples, kind=settings.objective, l2=settings.l2)


def _check_same_shape(new_log_probs: Tensor, samples: Samples) -> None:
    """A silent broadcast of (K, T) against another shape would average over other terms."""
    shapes = {tuple(new_log_probs.shape)} | {
        tuple(part.shape) for part in (samples.log_probs, samples.advantages, samples.weights)
    }
    if len(shapes) != 1 or new_log_probs.ndim != 2:
        raise ValueError(f"log-probabilities, advantages and weights must be (K, T), got {shapes}")
