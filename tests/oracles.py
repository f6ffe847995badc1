"""Slow, obviously right references, and the random inputs that they are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl

from maml_ray.config import Settings
from maml_ray.meta_objective import MetaBatch
from maml_ray.objectives import Samples
from maml_ray.policy import Gaussian, PolicySpec
from maml_ray.trajectories import Trajectories

Parameters = dict[str, Tensor]
Float64 = NDArray[np.float64]
Tree = TypeVar("Tree")


# Advantages


def discounted_sums(values: Float64, discount: float) -> Float64:
    """The definition: ``sum_k discount^k values[t + k]``, episode by episode, step by step."""
    result = np.zeros_like(values)
    episodes, steps = values.shape
    for episode in range(episodes):
        for start in range(steps):
            for later in range(start, steps):
                result[episode, start] += discount ** (later - start) * values[episode, later]
    return result


def gae(
    rewards: Float64, values: Float64, lengths: NDArray[np.int64], discount: float, lam: float
) -> Float64:
    """GAE as a sum over temporal differences, with no value behind an episode's last step."""
    result = np.zeros_like(rewards)
    for episode, length in enumerate(lengths):
        for start in range(length):
            for later in range(start, length):
                following = values[episode, later + 1] if later + 1 < length else 0.0
                delta = rewards[episode, later] + discount * following - values[episode, later]
                result[episode, start] += (discount * lam) ** (later - start) * delta
    return result


def ridge_values(trajectories: Trajectories, returns: Float64, ridge: float) -> Float64:
    """The linear baseline, by least squares on a system with ``sqrt(ridge) I`` put under it."""
    rows: list[list[float]] = []
    targets: list[float] = []
    where: list[tuple[int, int]] = []
    for episode, step in np.argwhere(trajectories.mask):
        state = [min(max(float(s), -10.0), 10.0) for s in trajectories.observations[episode, step]]
        time = step / 100.0
        rows.append([*state, *(s * s for s in state), time, time**2, time**3, 1.0])
        targets.append(float(returns[episode, step]))
        where.append((int(episode), int(step)))
    size = len(rows[0])
    system = np.vstack((np.array(rows), np.sqrt(ridge) * np.eye(size)))
    weights = np.linalg.lstsq(system, np.concatenate((targets, np.zeros(size))), rcond=None)[0]
    result = np.zeros_like(returns)
    for place, row in zip(where, rows, strict=True):
        result[place] = np.dot(row, weights)
    return result


# The policy and the meta-loss, from scratch


def action_distribution(spec: PolicySpec, parameters: Parameters, observations: Tensor) -> Any:
    """The policy, written out with torch.distributions."""
    hidden = observations
    for layer in range(len(spec.hidden_sizes)):
        hidden = hidden @ parameters[f"hidden_{layer}.weight"].T
        hidden = hidden + parameters[f"hidden_{layer}.bias"]
        hidden = torch.tanh(hidden) if spec.activation == "tanh" else torch.relu(hidden)
    mean = hidden @ parameters["mean.weight"].T + parameters["mean.bias"]
    std = torch.exp(torch.clamp(parameters["log_std"], min=spec.min_log_std)).expand_as(mean)
    return Independent(Normal(mean, std), 1)


def meta_loss(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch
) -> Tensor:
    """Task by task: adapt with ``torch.autograd.grad(create_graph=True)``, then the outer loss."""
    tasks = batch.query.weights.shape[0]
    total = torch.zeros((), dtype=batch.query.weights.dtype)
    for task in range(tasks):
        total = total + _task_loss(settings, spec, parameters, batch, task)
    return total / tasks


def _task_loss(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch, task: int
) -> Tensor:
    inner, outer = settings.inner, settings.outer
    theta = parameters
    kls: list[Tensor] = []
    for support, collector in zip(batch.support, batch.collectors, strict=True):
        policy = action_distribution(spec, theta, support.observations[task])
        log_probs = policy.log_prob(support.actions[task])
        if inner.objective == "ratio":
            score = torch.exp(log_probs - support.log_probs[task])
        else:
            score = log_probs
        loss = -(score * support.advantages[task] * support.weights[task]).sum()
        for value in theta.values():
            loss = loss + inner.l2 * (value**2).sum()
        std = torch.exp(collector.log_std[task]).expand_as(collector.mean[task])
        old = Independent(Normal(collector.mean[task], std), 1)
        kls.append((torch_kl(old, policy) * support.weights[task]).sum())
        gradients = torch.autograd.grad(
            loss, list(theta.values()), create_graph=outer.order == "second", retain_graph=True
        )
        theta = {
            name: value - inner.learning_rate * gradient
            for (name, value), gradient in zip(theta.items(), gradients, strict=True)
        }
    query = batch.query
    policy = action_distribution(spec, theta, query.observations[task])
    query_log_probs: Tensor = policy.log_prob(query.actions[task])
    if outer.objective == "reinforce":
        return -(query_log_probs * query.advantages[task] * query.weights[task]).sum()
    ratio = torch.exp(query_log_probs - query.log_probs[task])
    bounded = torch.clamp(ratio, 1 - outer.clip, 1 + outer.clip)
    gain = torch.minimum(ratio * query.advantages[task], bounded * query.advantages[task])
    kl = torch.stack(kls).mean()
    return -(gain * query.weights[task]).sum() + outer.inner_kl_coefficient * kl


def gradient(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """The gradient of ``loss`` by ordinary autograd."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    values = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, values, strict=True))


def finite_differences(
    loss: Callable[[Parameters], Tensor], parameters: Parameters, step: float = 1e-5
) -> Parameters:
    """The gradient of ``loss`` by central differences; for float64."""
    result: Parameters = {}
    for name, value in parameters.items():
        slopes = torch.zeros_like(value)
        for i in range(value.numel()):
            sides = []
            for sign in (1.0, -1.0):
                moved = {key: other.detach().clone() for key, other in parameters.items()}
                moved[name].view(-1)[i] += sign * step
                sides.append(float(loss(moved).detach()))
            slopes.view(-1)[i] = (sides[0] - sides[1]) / (2.0 * step)
        result[name] = slopes
    return result


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([value.detach().reshape(-1) for value in parameters.values()])


def relative_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Length of the difference of two parameter dictionaries, relative to the second's."""
    difference = flat(actual) - flat(expected)
    return float(difference.norm() / flat(expected).norm())


# Random inputs


def random_trajectories(
    rng: np.random.Generator,
    episodes: int = 3,
    steps: int = 8,
    observation_size: int = 4,
    action_size: int = 2,
    *,
    early_ends: bool = False,
) -> Trajectories:
    """Trajectories of random numbers; with ``early_ends`` each has a length of its own."""
    lengths = rng.integers(1, steps + 1, episodes) if early_ends else np.full(episodes, steps)
    mask = np.arange(steps) < lengths[:, None]

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal((episodes, steps, *shape)).astype(np.float32)

    return Trajectories(
        observations=draw(observation_size) * mask[..., None],
        actions=draw(action_size),
        log_probs=draw() - 3.0,
        rewards=draw() * mask,
        mask=mask,
    )


def random_parameters(spec: PolicySpec, rng: np.random.Generator, scale: float = 0.5) -> Parameters:
    """Float64 parameters that are not small."""
    return {
        name: torch.from_numpy(scale * rng.standard_normal(shape))
        for name, shape in spec.shapes().items()
    }


def random_meta_batch(
    settings: Settings, spec: PolicySpec, parameters: Parameters, rng: np.random.Generator
) -> MetaBatch:
    """A float64 meta-batch of 10 steps, collected by policies near ``parameters`` and masked."""
    tasks, steps = settings.meta_batch.tasks, 10

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((tasks, *shape)))

    def phase() -> tuple[Samples, Gaussian]:
        observations = normal(steps, spec.observation_size)
        collector = {
            name: value + 0.02 * torch.from_numpy(rng.standard_normal(value.shape))
            for name, value in parameters.items()
        }
        policy = action_distribution(spec, collector, observations)
        mean, std = policy.base_dist.mean, policy.base_dist.stddev
        actions = mean + std * normal(steps, spec.action_size)
        taken = (torch.arange(steps) < steps - 2).expand(tasks, steps)
        samples = Samples(
            observations=observations,
            actions=actions,
            log_probs=policy.log_prob(actions),
            advantages=normal(steps),
            weights=taken.double() / (steps - 2),
        )
        return samples, Gaussian(mean, torch.log(std[:, 0]))

    support = [phase() for _ in range(settings.inner.steps)]
    return MetaBatch(
        support=tuple(samples for samples, _ in support),
        collectors=tuple(gaussian for _, gaussian in support),
        query=phase()[0],
    )


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``function`` of every tensor of ``tree``."""
    result: Tree = torch.utils._pytree.tree_map(function, tree)
    return result
