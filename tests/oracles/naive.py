"""Slow, obviously right references, and the random inputs that they are fed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Categorical, Gaussian
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories
from tests.oracles.meta import Parameters, action_distribution

Float64 = NDArray[np.float64]


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


# Derivatives


def gradient(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """The gradient of ``loss`` by ordinary autograd."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    values = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
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


def slopes_along(
    loss: Callable[[Parameters], Tensor], parameters: Parameters, directions: list[Parameters]
) -> Tensor:
    """Derivatives of ``loss`` along some directions by central differences; for float64."""
    step, slopes = 1e-5, []
    for direction in directions:
        ahead, behind = (
            float(loss({k: v + sign * step * direction[k] for k, v in parameters.items()}).detach())
            for sign in (1.0, -1.0)
        )
        slopes.append((ahead - behind) / (2.0 * step))
    return torch.tensor(slopes, dtype=torch.float64)


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


def with_rates(parameters: Parameters, rng: np.random.Generator) -> Parameters:
    """``parameters`` and logarithms of inner rates, each another, around that of 0.3."""
    rates = {
        f"log_inner_rate/{name}": math.log(0.3)
        + 0.3 * torch.from_numpy(rng.standard_normal(value.shape))
        for name, value in parameters.items()
    }
    return {**parameters, **rates}


def meta_parameters(
    settings: Settings, parameters: Parameters, rng: np.random.Generator
) -> Parameters:
    """``parameters`` and those of the inner steps that the settings ask for."""
    inner = settings.inner
    if inner.parameters == "context":
        shape = (len(parameters["hidden_0.bias"]), inner.context_size)
        weight = {"context_weight": torch.from_numpy(rng.standard_normal(shape))}
        if not inner.learn_inner_rates:
            return {**parameters, **weight}
        rates = math.log(0.5) + 0.3 * torch.from_numpy(rng.standard_normal(inner.context_size))
        return {**parameters, "log_inner_rate/context": rates, **weight}
    if not inner.learn_inner_rates:
        return parameters
    adapted = {
        name: value
        for name, value in parameters.items()
        if inner.parameters == "all" or name.startswith(("mean.", "logits."))
    }
    return {**parameters, **with_rates(adapted, rng)}


def random_meta_batch(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    rng: np.random.Generator,
    length: int = 5,
) -> MetaBatch:
    """A float64 meta-batch of two episodes a task, collected by policies near ``parameters``.

    One is of ``length`` steps, the other of two less. If the inner steps are a context's, it has a
    random context gradient in place of support data.
    """
    tasks, shape = settings.meta_batch.tasks, (2, length)
    taken = (torch.arange(length) < torch.tensor([[length], [length - 2]])).expand(tasks, *shape)

    def normal(*sizes: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((tasks, *sizes)))

    def phase() -> tuple[Samples[Tensor], ActionDistribution]:
        observations = normal(2 * length, spec.observation_size)
        collector = {
            name: value + 0.02 * torch.from_numpy(rng.standard_normal(value.shape))
            for name, value in parameters.items()
        }
        policy = action_distribution(spec, collector, observations)
        if spec.discrete:
            chosen = (
                policy.logits + torch.from_numpy(rng.gumbel(size=policy.logits.shape))
            ).argmax(-1)
            actions, recorded = chosen[..., None].double(), policy.log_prob(chosen)
            kept: ActionDistribution = Categorical(policy.logits)
        else:
            mean, std = policy.base_dist.mean, policy.base_dist.stddev
            actions = mean + std * normal(2 * length, spec.action_size)
            recorded, kept = policy.log_prob(actions), Gaussian(mean, torch.log(std[:, 0]))
        samples = Samples(
            observations=observations,
            actions=actions,
            log_probs=recorded.reshape(tasks, *shape),
            advantages=normal(*shape),
            weights=taken.double() / (2 * length - 2),
        )
        return samples, kept

    by_context = settings.inner.parameters == "context"
    support = [phase() for _ in range(0 if by_context else settings.inner.steps)]
    query, query_behavior = phase()
    return MetaBatch(
        support=tuple(samples for samples, _ in support),
        support_behavior=tuple(collector for _, collector in support),
        query=query,
        query_behavior=query_behavior,
        task_advantage=normal(),
        context_gradient=normal(settings.inner.context_size if by_context else 0),
    )
