from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.config.sections import InnerSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import distribution, log_prob, samples_to_torch
from maml_ray.maml.losses import (
    INNER_LOSSES,
    clipped_loss,
    dice_loss,
    e_maml_loss,
    log_prob_loss,
    ratio_loss,
)
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.samples import make_samples
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)


def samples_at(seed: int = 0, steps: int = 9, taken: int = 6) -> tuple[Samples[Tensor], Tensor]:
    """Float64 samples of one episode, and new log-probabilities that differ from theirs."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    weights = (torch.arange(steps) < taken).double()[None] / taken
    observations, actions = normal(steps, 3), normal(steps, 2)
    samples = Samples(observations, actions, normal(1, steps) - 2.0, normal(1, steps), weights)
    return samples, (samples.log_probs + 0.4 * normal(1, steps)).requires_grad_()


def derivatives(loss: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """First derivative and the Hessian's diagonal; the losses are sums over steps."""
    (first,) = torch.autograd.grad(loss, at, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(first.sum(), at)
    return first.detach(), second


def test_ratio_loss_and_its_derivatives_by_hand() -> None:
    samples, new = samples_at()
    loss = ratio_loss(new, samples)
    ratio = torch.exp(new.detach() - samples.log_probs)
    taken = (0, slice(0, 6))
    torch.testing.assert_close(loss.detach(), -(ratio[taken] * samples.advantages[taken]).mean())
    # d exp(x) = d2 exp(x) = exp(x).
    expected = -ratio * samples.advantages * samples.weights
    first, second = derivatives(loss, new)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_log_prob_loss_and_its_derivatives_by_hand() -> None:
    samples, new = samples_at()
    loss = log_prob_loss(new, samples)
    ratio = torch.exp(new.detach() - samples.log_probs)
    taken = (0, slice(0, 6))
    kept = new.detach()[taken] * samples.advantages[taken]
    torch.testing.assert_close(loss.detach(), -(ratio[taken] * kept).mean())
    first, second = derivatives(loss, new)
    torch.testing.assert_close(first, -ratio * samples.advantages * samples.weights)
    assert (second == 0).all()


@pytest.mark.parametrize("kind", ["dice", "log_prob"])
def test_away_from_the_behavior_policy_each_step_is_weighted_by_its_ratio(kind: str) -> None:
    """Otherwise a second outer step would take another policy's data for its own."""
    samples, new = samples_at()
    first, _ = derivatives(INNER_LOSSES[kind](new, samples), new)
    ratio = torch.exp(new.detach() - samples.log_probs)
    torch.testing.assert_close(first, -ratio * samples.advantages * samples.weights)
    at_home = new.detach().requires_grad_()
    own = samples._replace(log_probs=new.detach())
    unweighted, _ = derivatives(INNER_LOSSES[kind](at_home, own), at_home)
    torch.testing.assert_close(unweighted, -samples.advantages * samples.weights)


def hessian_and_gradient(
    kind: Any, theta: Tensor, samples: Samples[Tensor]
) -> tuple[Tensor, Tensor]:
    sizes = {name: torch.Size(shape) for name, shape in SPEC.shapes().items()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([size.numel() for size in sizes.values()])
        parameters = {
            name: part.view(size) for (name, size), part in zip(sizes.items(), parts, strict=True)
        }
        return inner_loss(SPEC, InnerSettings(objective=kind, l2=0.0), samples, parameters)[0]

    hessian: Tensor = torch.func.hessian(loss)(theta)
    gradient: Tensor = torch.func.grad(loss)(theta)
    return hessian, gradient


def test_the_two_kinds_differ_by_the_outer_product_of_scores() -> None:
    """At the collecting policy: same gradient; Hessians that differ by -mean(A s s^T)."""
    samples, _ = samples_at()
    parameters = oracles.random_parameters(SPEC, np.random.default_rng(1))
    collected = log_prob(
        distribution(SPEC, parameters, samples.observations), samples.actions
    ).detach()
    samples = samples._replace(log_probs=collected[None])
    theta = oracles.flat(parameters)
    ratio_hessian, ratio_gradient = hessian_and_gradient("ratio", theta, samples)
    plain_hessian, plain_gradient = hessian_and_gradient("log_prob", theta, samples)
    torch.testing.assert_close(ratio_gradient, plain_gradient)

    expected = torch.zeros_like(ratio_hessian)
    for step in range(6):
        leaves = {name: v.clone().requires_grad_() for name, v in parameters.items()}
        policy = meta_oracles.action_distribution(SPEC, leaves, samples.observations[step])
        log_density = policy.log_prob(samples.actions[step])
        score = torch.cat(
            [part.reshape(-1) for part in torch.autograd.grad(log_density, list(leaves.values()))]
        )
        expected -= samples.advantages[0, step] * torch.outer(score, score) / 6
    torch.testing.assert_close(ratio_hessian - plain_hessian, expected)
    assert float(expected.norm()) > 0.1 * float(plain_hessian.norm())  # no small matter


def test_the_gradient_is_the_policy_gradient_of_the_log_density() -> None:
    samples, _ = samples_at()
    parameters = oracles.random_parameters(SPEC, np.random.default_rng(1))
    collected = meta_oracles.action_distribution(SPEC, parameters, samples.observations)
    samples = samples._replace(log_probs=collected.log_prob(samples.actions)[None])

    def plain(theta: dict[str, Tensor]) -> Tensor:
        policy = meta_oracles.action_distribution(SPEC, theta, samples.observations[:6])
        log_density: Tensor = policy.log_prob(samples.actions[:6])
        return -(log_density * samples.advantages[0, :6]).mean()

    def ours(theta: dict[str, Tensor]) -> Tensor:
        return inner_loss(SPEC, InnerSettings(objective="log_prob", l2=0.0), samples, theta)[0]

    actual, expected = oracles.gradient(ours, parameters), oracles.gradient(plain, parameters)
    assert oracles.relative_error(actual, expected) < 1e-12


def test_l2_is_the_sum_of_squares_of_all_parameters() -> None:
    samples, _ = samples_at()
    parameters = oracles.random_parameters(SPEC, np.random.default_rng(1))
    without, _ = inner_loss(SPEC, InnerSettings(objective="ratio", l2=0.0), samples, parameters)
    with_it, _ = inner_loss(SPEC, InnerSettings(objective="ratio", l2=0.25), samples, parameters)
    squares = oracles.flat(parameters).square().sum()
    torch.testing.assert_close(with_it - without, 0.25 * squares)


def test_inner_loss_gives_the_distribution_it_went_through() -> None:
    samples, _ = samples_at()
    parameters = oracles.random_parameters(SPEC, np.random.default_rng(1))
    _, policy = inner_loss(SPEC, InnerSettings(objective="ratio", l2=0.0), samples, parameters)
    expected = distribution(SPEC, parameters, samples.observations)
    for actual_part, expected_part in zip(policy, expected, strict=True):
        torch.testing.assert_close(actual_part, expected_part)


@pytest.mark.parametrize("clip", [0.05, 0.3, 2.0])
def test_clipped_loss_is_the_scalar_loop(clip: float) -> None:
    samples, new = samples_at(steps=200, taken=150)
    total, slopes, values = 0.0, [], new.detach()
    for step in range(150):
        advantage = float(samples.advantages[0, step])
        ratio = float(torch.exp(values[0, step] - samples.log_probs[0, step]))
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        total += min(ratio * advantage, bounded * advantage)
        unclipped = ratio * advantage <= bounded * advantage
        slopes.append(-ratio * advantage / 150 if unclipped else 0.0)
    loss = clipped_loss(new, samples, clip)
    assert float(loss.detach()) == pytest.approx(-total / 150)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient[0, :150], torch.tensor(slopes).double())
    assert (gradient[0, 150:] == 0).all()


def test_clipping_is_pessimistic() -> None:
    """A good action stops paying above 1 + clip, a bad one keeps hurting."""
    one = torch.ones(1, 1)
    base = Samples(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), one, one)
    high = torch.log(torch.tensor([[2.0]]))
    assert float(clipped_loss(high, base, 0.3)) == pytest.approx(-1.3)
    assert float(clipped_loss(high, base._replace(advantages=-one), 0.3)) == pytest.approx(2.0)
    low = torch.log(torch.tensor([[0.5]]))
    assert float(clipped_loss(low, base, 0.3)) == pytest.approx(-0.5)
    assert float(clipped_loss(low, base._replace(advantages=-one), 0.3)) == pytest.approx(0.7)


@pytest.mark.parametrize("early_ends", [False, True])
def test_samples_are_the_flattened_trajectories(early_ends: bool) -> None:
    data = oracles.random_trajectories(np.random.default_rng(2), 3, 6, early_ends=early_ends)
    advantages = np.random.default_rng(3).standard_normal((3, 6)).astype(np.float32)
    samples = samples_to_torch(make_samples(data, advantages))
    assert samples.observations.shape == (18, 4)
    assert samples.actions.shape == (18, 2)
    np.testing.assert_array_equal(samples.observations[7].numpy(), data.observations[1, 1])
    np.testing.assert_array_equal(samples.actions[13].numpy(), data.actions[2, 1])
    np.testing.assert_array_equal(samples.log_probs.numpy(), data.log_probs)
    np.testing.assert_array_equal(samples.advantages.numpy(), advantages)
    assert float(samples.weights.sum()) == pytest.approx(1.0)
    np.testing.assert_array_equal(samples.weights.numpy() > 0, data.mask)
    assert all(part.dtype == torch.float32 for part in samples)
    weighted = (samples.advantages * samples.weights).sum()
    assert float(weighted) == pytest.approx(advantages[data.mask].mean(), abs=1e-6)


def test_samples_are_made_of_read_only_arrays_without_a_warning() -> None:
    """Arrays from Ray's object store are read-only, and torch warns of sharing them."""
    data = oracles.random_trajectories(np.random.default_rng(2))
    for name in ("observations", "actions", "log_probs", "rewards", "mask"):
        getattr(data, name).flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            samples_to_torch(make_samples(data, np.zeros((3, 8), np.float32)))
    finally:
        torch.set_warn_always(False)


def test_masked_steps_change_nothing() -> None:
    samples, new = samples_at()
    new = new.detach()
    junk = samples._replace(
        advantages=torch.where(samples.weights > 0, samples.advantages, 1e6),
        log_probs=torch.where(samples.weights > 0, samples.log_probs, 5.0),
    )
    for loss in (
        lambda data: ratio_loss(new, data),
        lambda data: log_prob_loss(new, data),
        lambda data: dice_loss(new, data),
        lambda data: e_maml_loss(new, data, torch.tensor(0.7)),
        lambda data: clipped_loss(new, data, 0.3),
    ):
        assert float(loss(junk)) == float(loss(samples))


@pytest.mark.parametrize("wrong", ["new", "advantages", "log_probs", "weights"])
@pytest.mark.parametrize("loss", ["ratio", "dice", "log_prob", "clipped", "sampling"])
def test_a_column_where_a_row_is_due_is_refused(wrong: str, loss: str) -> None:
    samples, new = samples_at()
    if wrong == "new":
        new = new.T
    else:
        samples = samples._replace(**{wrong: getattr(samples, wrong).T})
    losses: dict[str, Callable[[], Tensor]] = {
        "ratio": lambda: ratio_loss(new, samples),
        "dice": lambda: dice_loss(new, samples),
        "log_prob": lambda: log_prob_loss(new, samples),
        "clipped": lambda: clipped_loss(new, samples, 0.3),
        "sampling": lambda: e_maml_loss(new, samples, torch.ones(())),
    }
    with pytest.raises(ValueError, match=r"\(K, T\)"):
        losses[loss]()


@pytest.mark.parametrize("loss", ["ratio", "log_prob", "dice", "clipped"])
def test_flat_samples_are_refused_since_time_could_not_be_told(loss: str) -> None:
    samples, new = samples_at()
    flat = samples._replace(
        **{name: getattr(samples, name)[0] for name in ("log_probs", "advantages", "weights")}
    )
    with pytest.raises(ValueError, match=r"\(K, T\)"):
        clipped_loss(new[0], flat, 0.3) if loss == "clipped" else INNER_LOSSES[loss](new[0], flat)


def test_the_sampling_loss_by_hand() -> None:
    samples, new = samples_at()
    ratio = torch.exp(new.detach() - samples.log_probs)
    loss = e_maml_loss(new, samples, torch.tensor(-0.7).double())
    torch.testing.assert_close(loss.detach(), 0.7 * ratio[0, :6].mean())
    (slope,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(slope, 0.7 * ratio * samples.weights)
