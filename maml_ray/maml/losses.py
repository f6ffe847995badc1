"""Define the surrogate losses of the inner and the outer loop, as functions of log-probabilities.

Every loss is a mean over the valid steps of one task (episodes and time together); the outer loop
alone averages over tasks. Axes: K episodes, T time steps, ``...`` none, or N tasks with a loss
each. Nothing here needs PyTorch to be imported: a loss is built from methods of the tensors it is
given.

The inner losses have the same first derivative, the policy gradient, and differ in their second,
which the meta-gradient sees. All of them weight each step by its ratio ``pi / pi_behavior``, which
is 1 until the parameters move away from those that collected the data: in a second outer step, or
with data of the previous version. In ``dice`` and ``log_prob`` that weight is a constant to the
derivatives. With ``s_t`` the score, the gradient of ``log pi`` at step t:

- ``ratio``: ``-mean(pi / pi_behavior * advantage)``. Its second derivative keeps each step's own
  ``s_t s_t^T``: ProMP's low-variance curvature, slightly biased (Rothfuss et al. 2019,
  https://arxiv.org/abs/1810.06784, equation 9).
- ``dice``: also keeps the products ``s_t s_u^T`` with the scores of earlier steps ``u < t``:
  unbiased at the parameters that collected the data, with a variance that grows with the horizon
  (Foerster et al. 2018, https://arxiv.org/abs/1802.05098, in the form for advantages of Farquhar et
  al. 2019, https://arxiv.org/abs/1909.10549, equation 9).
- ``log_prob``: ``-mean(weight * log pi * advantage)``, the source notebook's (Williams 1992). Keeps
  none of the products: a biased meta-gradient, kept for comparison.

To add an outer objective, write its loss and add it to :data:`OUTER_OBJECTIVES`: every backend
computes its value and gradient from this definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maml_ray.config.error_messages import did_you_mean
from maml_ray.config.sections import OuterSettings
from maml_ray.config.settings import SettingsError
from maml_ray.kernels.types import Samples

if TYPE_CHECKING:
    from torch import Tensor

LogProbLoss = Callable[["Tensor", "Samples[Tensor]", OuterSettings], "Tensor"]


@dataclass(frozen=True)
class OuterObjective:
    """An outer objective: a loss of the adapted policy's log-probabilities on query samples.

    Attributes:
        loss: from log-probabilities (..., K, T), query samples and the outer settings to the loss
            (...) of each task.
        penalizes_inner_kl: add ``outer.inner_kl_coefficient`` times the inner KL to the loss.
        uses_trust_region: optimized by a natural-gradient step; otherwise by Adam.
        toward_adapted: the meta-gradient is the mean over tasks of ``theta - theta'``, where
            ``theta'`` are the adapted parameters, instead of the loss's: a step of Adam then
            approaches them (Reptile, Nichol et al. 2018, https://arxiv.org/abs/1803.02999).
    """

    loss: LogProbLoss
    penalizes_inner_kl: bool = False
    uses_trust_region: bool = False
    toward_adapted: bool = False


def outer_objective(name: str) -> OuterObjective:
    """Return the outer objective of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in OUTER_OBJECTIVES:
        raise SettingsError(
            f"outer.objective = {name!r:.60} is not known{did_you_mean(name, OUTER_OBJECTIVES)} "
            f"(choose one of: {', '.join(sorted(OUTER_OBJECTIVES))})"
        )
    return OUTER_OBJECTIVES[name]


def outer_loss(outer: OuterSettings, log_probs: Tensor, samples: Samples[Tensor]) -> Tensor:
    """Return the loss (...) of ``outer.objective``, without penalties.

    Args:
        outer: settings of the outer loop.
        log_probs: (..., K, T) of the query actions under the adapted policies.
        samples: query samples.

    Raises:
        SettingsError: the objective is unknown.
        ValueError: its loss is not one number per task.
    """
    loss = outer_objective(outer.objective).loss(log_probs, samples, outer)
    if loss.shape != log_probs.shape[:-2]:
        raise ValueError(
            f"the loss of outer.objective = {outer.objective!r} has shape {tuple(loss.shape)} for "
            f"log-probabilities {tuple(log_probs.shape)}: sum over the last two axes only"
        )
    return loss


def ratio_loss(log_probs: Tensor, samples: Samples[Tensor]) -> Tensor:
    """Return ``-mean(pi / pi_behavior * advantage)``: (...).

    Args:
        log_probs: (..., K, T) under the parameters to differentiate, recomputed from the samples'
            observations and actions.
        samples: the steps.
    """
    ratio = _behavior_ratio(log_probs, samples)
    return -(ratio * samples.advantages * samples.weights).sum((-2, -1))


def log_prob_loss(log_probs: Tensor, samples: Samples[Tensor]) -> Tensor:
    """Return ``-mean(weight * log pi * advantage)``: (...); arguments as of :func:`ratio_loss`.

    The weight is the ratio, as a constant: the gradient is that of :func:`ratio_loss`.
    """
    ratio = _behavior_ratio(log_probs, samples).detach()
    return -(ratio * log_probs * samples.advantages * samples.weights).sum((-2, -1))


def dice_loss(log_probs: Tensor, samples: Samples[Tensor]) -> Tensor:
    """Return the DiCE surrogate: (...); arguments as of :func:`ratio_loss`.

    Each advantage is multiplied by ``box(log-probs up to t) - box(log-probs before t)``, which is
    zero in value but not in its derivatives; ``box(x) = exp(x - stop_gradient(x))``. Steps after an
    episode's end are left out of the sums. The weight of a step is its ratio, as a constant.
    """
    ratio = _behavior_ratio(log_probs, samples).detach()
    valid = log_probs.where(samples.weights > 0.0, log_probs.new_zeros(()))
    up_to = valid.cumsum(-1)
    before = up_to - valid
    score = (up_to - up_to.detach()).exp() - (before - before.detach()).exp()
    return -(ratio * score * samples.advantages * samples.weights).sum((-2, -1))


INNER_LOSSES: dict[str, Callable[[Tensor, Samples[Tensor]], Tensor]] = {
    "ratio": ratio_loss,
    "dice": dice_loss,
    "log_prob": log_prob_loss,
}
"""Inner objectives by name (``inner.objective``)."""


def clipped_loss(log_probs: Tensor, samples: Samples[Tensor], clip: float) -> Tensor:
    """Return PPO's clipped surrogate ``-mean(min(r A, clamp(r, 1 - clip, 1 + clip) A))``: (...).

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7; applied to the adapted
    policy on query data it is ProMP's outer objective.

    Args:
        log_probs: (..., K, T) under the adapted parameters to differentiate.
        samples: query steps, collected by the adapted policy before the update.
        clip: epsilon: ratios beyond ``1 +- clip`` earn nothing more.
    """
    ratio = _behavior_ratio(log_probs, samples)
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    gain = samples.advantages * samples.weights
    return -(ratio * gain).minimum(clipped * gain).sum((-2, -1))


def e_maml_loss(log_probs: Tensor, samples: Samples[Tensor], task_advantage: Tensor) -> Tensor:
    """Return E-MAML's sampling term, ``-task_advantage * mean(pi / pi_behavior)``: (...).

    It makes support data that led to a good adapted policy more likely: the gradient of the
    expected return after adaptation with respect to the distribution that the support data are
    drawn from, which MAML leaves out (Stadie et al. 2018, https://arxiv.org/abs/1803.01118,
    equation 4; averaged over steps and with returns centered over tasks as in ProMP's code).

    Args:
        log_probs: (..., K, T) of the support actions, under the parameters to differentiate.
        samples: support steps.
        task_advantage: (...) return after adaptation, standardized over tasks.
    """
    ratio = _behavior_ratio(log_probs, samples)
    return -task_advantage * (ratio * samples.weights).sum((-2, -1))


OUTER_OBJECTIVES: dict[str, OuterObjective] = {
    "ppo": OuterObjective(
        lambda log_probs, samples, outer: clipped_loss(log_probs, samples, outer.clip),
        penalizes_inner_kl=True,
    ),
    "trpo": OuterObjective(
        lambda log_probs, samples, outer: ratio_loss(log_probs, samples), uses_trust_region=True
    ),
    "reinforce": OuterObjective(
        lambda log_probs, samples, outer: log_prob_loss(log_probs, samples)
    ),
    "reptile": OuterObjective(
        lambda log_probs, samples, outer: ratio_loss(log_probs, samples), toward_adapted=True
    ),
}
"""Outer objectives by name (``outer.objective``)."""


def _behavior_ratio(log_probs: Tensor, samples: Samples[Tensor]) -> Tensor:
    """Return ``pi / pi_behavior`` (..., K, T) of each step.

    Raises:
        ValueError: the shapes differ; a silent broadcast would average other terms.
    """
    shapes = {tuple(log_probs.shape)} | {
        tuple(part.shape) for part in (samples.log_probs, samples.advantages, samples.weights)
    }
    if len(shapes) != 1 or log_probs.ndim < 2:
        raise ValueError(
            "log-probabilities, advantages and weights must be (K, T), or (N, K, T) of N tasks, "
            f"got {shapes}"
        )
    return (log_probs - samples.log_probs).exp()
