"""Settings in combination, from trajectories to the meta-gradient, against a float64 reference.

Each pair of choices occurs in some combination. The reference starts from the same trajectories and
shares no code with the package: advantages step by step, normalization by its formula, adaptation
unrolled task by task, and one gradient through all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Gaussian, Samples
from maml_ray.learning.batch_builder import MetaBatchBuilder
from maml_ray.maml.distributions import ActionDistribution, Categorical
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.context import context_offsets
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories
from maml_ray.tasks.task import Task
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters

CHOICES: Mapping[str, Sequence[Any]] = {
    "inner": ("ratio", "dice", "log_prob"),
    "outer": ("ppo", "trpo", "reinforce"),
    "steps": (1, 2, 3, 0),
    "order": ("second", "first"),
    "part": (
        "all",
        "all, learned rates",
        "head",
        "head, learned rates",
        "context",
        "context, learned rates",
    ),
    "e_maml": (0.0, 0.7),
    "normalized": ("nothing", "observations", "advantages", "both"),
    "baseline": ("linear", "zero"),
    "early_ends": (False, True),
    "discrete": (False, True),
    "activation": ("tanh", "relu"),
}
Combination = dict[str, Any]
TASKS, EPISODES, HORIZON, CONTEXT_SIZE = 2, 5, 6, 2
MEAN, STD = np.array([0.5, -1.0, 0.0]), np.array([2.0, 0.5, 1.0])
"""Of all observations so far, which are normalized by them."""


def pairs_of(combination: Combination) -> set[tuple[tuple[str, Any], ...]]:
    return set(combinations(combination.items(), 2))


def is_allowed(combination: Combination) -> bool:
    """A context's steps have no inner loss, and so no place for E-MAML's term."""
    return combination.get("e_maml", 0.0) == 0.0 or "context" not in combination.get("part", "")


def covering() -> list[Combination]:
    """Return combinations in which each pair of choices occurs: greedily, the best of 50 draws."""
    rng = np.random.default_rng(0)
    options = [[(key, value) for value in values] for key, values in CHOICES.items()]
    pairs = {pair for two in combinations(options, 2) for pair in product(*two)}
    missing = {pair for pair in pairs if is_allowed(dict(pair))}
    chosen: list[Combination] = []
    while missing:
        drawn = [dict(each[rng.integers(len(each))] for each in options) for _ in range(50)]
        drawn = [one for one in drawn if is_allowed(one)]
        chosen.append(max(drawn, key=lambda one: len(pairs_of(one) & missing)))
        missing -= pairs_of(chosen[-1])
    return chosen


def name_of(combination: Combination) -> str:
    return ",".join(f"{key}={value}" for key, value in combination.items())


def settings_of(chosen: Combination) -> Settings:
    """Large coefficients, so that a missing term cannot hide."""
    return validate_settings(
        {
            "task": {"horizon": HORIZON},
            "meta_batch": {"tasks": TASKS, "episodes": EPISODES},
            "policy": {"normalize_observations": chosen["normalized"] in ("observations", "both")},
            "advantages": {
                "baseline": chosen["baseline"],
                "normalize": chosen["normalized"] in ("advantages", "both"),
                "discount": 0.9,
                "gae_lambda": 0.8,
            },
            "inner": {
                "steps": chosen["steps"],
                "objective": chosen["inner"],
                "learning_rate": 0.3,
                "l2": 0.01,
                "parameters": chosen["part"].split(",")[0],
                "context_size": CONTEXT_SIZE,
                "learn_inner_rates": "learned rates" in chosen["part"],
            },
            "outer": {
                "objective": chosen["outer"],
                "inner_kl_coefficient": 0.5,
                "e_maml_coefficient": chosen["e_maml"],
                "clip": 0.1,
            },
        }
    )


def spec_of(chosen: Combination) -> PolicySpec:
    return PolicySpec(3, 2, (5,), chosen["activation"], 0.0, -3.0, discrete=chosen["discrete"])


def rounded(parameters: Parameters) -> Parameters:
    """Float64 numbers that float32 holds exactly."""
    return {name: value.float().double() for name, value in parameters.items()}


def moved(parameters: Parameters, rng: np.random.Generator) -> Parameters:
    return rounded(
        {k: v + 0.1 * torch.from_numpy(rng.standard_normal(v.shape)) for k, v in parameters.items()}
    )


def standardized(observations: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.clip((observations.astype(np.float64) - MEAN) / STD, -10.0, 10.0))


def seen(settings: Settings, trajectories: Trajectories) -> Tensor:
    """The observations as the policy takes them (K * T, D)."""
    flat = trajectories.observations.reshape(-1, 3)
    if settings.policy.normalize_observations:
        return standardized(flat)
    return torch.from_numpy(flat).double()


def collected(
    chosen: Combination, settings: Settings, parameters: Parameters, rng: np.random.Generator
) -> Trajectories:
    """Trajectories of random observations and rewards, with actions of a policy nearby."""
    blank = oracles.random_trajectories(
        rng, EPISODES, HORIZON, 3, 1 if chosen["discrete"] else 2, early_ends=chosen["early_ends"]
    )
    spec, behavior = spec_of(chosen), moved(parameters, rng)
    policy = meta_oracles.action_distribution(spec, behavior, seen(settings, blank))
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        actions = policy.sample()
    log_probs = policy.log_prob(actions)
    return Trajectories(
        observations=blank.observations,
        actions=actions.float().numpy().reshape(blank.actions.shape),
        log_probs=log_probs.float().numpy().reshape(blank.log_probs.shape),
        rewards=blank.rewards,
        mask=blank.mask,
        context_offsets=context_offsets(EPISODES, CONTEXT_SIZE),
    )


def reference_samples(settings: Settings, trajectories: Trajectories) -> Samples[Tensor]:
    chosen, mask = settings.advantages, trajectories.mask
    rewards = trajectories.rewards.astype(np.float64)
    values = np.zeros_like(rewards)
    if chosen.baseline == "linear":
        returns = oracles.discounted_sums(rewards, chosen.discount)
        values = oracles.ridge_values(trajectories, returns, 1e-5)
    lengths = mask.sum(axis=1)
    advantages = oracles.gae(rewards, values, lengths, chosen.discount, chosen.gae_lambda)
    if chosen.normalize:
        taken = [advantages[k, t] for k in range(EPISODES) for t in range(lengths[k])]
        advantages = (advantages - np.mean(taken)) / (np.std(taken) + 1e-8) * mask
    return Samples(
        observations=seen(settings, trajectories),
        actions=torch.from_numpy(trajectories.actions.reshape(mask.size, -1)).double(),
        log_probs=torch.from_numpy(trajectories.log_probs).double(),
        advantages=torch.from_numpy(advantages),
        weights=torch.from_numpy(mask / mask.sum()),
    )


def reference_gradient(support: Sequence[Trajectories]) -> Tensor:
    """Of a context: a pair of episodes for each number, the fifth for none; mean of the steps."""
    total = np.zeros(CONTEXT_SIZE)
    for trajectories in support:
        for number in range(CONTEXT_SIZE):
            raised, lowered = trajectories.rewards[2 * number : 2 * number + 2].astype(np.float64)
            total[number] += (raised.sum() - lowered.sum()) / HORIZON / 4.0 / len(support)
    return torch.from_numpy(total)


def as_behavior(policy: Any) -> ActionDistribution:
    if isinstance(policy, torch.distributions.Categorical):
        return Categorical(policy.logits.detach())
    mean, std = policy.base_dist.loc.detach(), policy.base_dist.scale.detach()
    return Gaussian(mean, std[0].log())


def reference_task(
    settings: Settings, spec: PolicySpec, parameters: Parameters, rollouts: TaskRollouts
) -> MetaBatch:
    """One task's data, and the policies that adapt to them from the collecting parameters."""
    by_context = settings.inner.parameters == "context"
    phases = () if by_context else rollouts.support
    support = tuple(reference_samples(settings, phase) for phase in phases)
    query = reference_samples(settings, rollouts.query)
    nothing = torch.zeros((), dtype=torch.float64)
    gradient = reference_gradient(rollouts.support if by_context else ())
    task = MetaBatch(support, (), query, None, nothing, gradient)  # type: ignore[arg-type]
    theta, policies = meta_oracles.adapted(settings, spec, parameters, task)
    adapted = meta_oracles.action_distribution(spec, theta, query.observations)
    return task._replace(
        support_behavior=tuple(map(as_behavior, policies)), query_behavior=as_behavior(adapted)
    )


def reference_loss(
    settings: Settings,
    spec: PolicySpec,
    collecting: Parameters,
    rollouts: Sequence[TaskRollouts],
    theta: Parameters,
    order: str,
) -> Tensor:
    returns = [
        np.mean([task.query.rewards[k].astype(np.float64).sum() for k in range(EPISODES)])
        for task in rollouts
    ]
    losses = []
    for task, its_return in zip(rollouts, returns, strict=True):
        advantage = (its_return - np.mean(returns)) / (np.std(returns) + 1e-8)
        data = reference_task(settings, spec, collecting, task)
        data = data._replace(task_advantage=torch.tensor(advantage))
        losses.append(meta_oracles.task_loss(settings, spec, theta, data, order))
    return torch.stack(losses).mean()


def roll_out(
    chosen: Combination, settings: Settings, parameters: Parameters, rng: np.random.Generator
) -> list[TaskRollouts]:
    rollouts = []
    for index in range(TASKS):
        *support, query = (
            collected(chosen, settings, parameters, rng) for _ in range(chosen["steps"] + 1)
        )
        rollouts.append(
            TaskRollouts(
                task=Task(str(index), {}),
                task_index=index,
                version=0,
                support=tuple(support),
                query=query,
                support_advantages=tuple(
                    compute_advantages(phase, settings.advantages) for phase in support
                ),
                query_advantages=compute_advantages(query, settings.advantages),
                obs_stats=RunningStatistics.empty(3),
            )
        )
    return rollouts


def errors(chosen: Combination) -> dict[str, tuple[float, float]]:
    """Return each backend's errors of loss and gradient, absolute and relative."""
    settings, spec, order = settings_of(chosen), spec_of(chosen), chosen["order"]
    rng = np.random.default_rng(0)
    collecting = oracles.random_parameters(spec, rng)
    collecting = oracles.meta_parameters(settings, collecting, rng)
    collecting = rounded(collecting)
    theta, rollouts = moved(collecting, rng), roll_out(chosen, settings, collecting, rng)
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    expected = reference_loss(settings, spec, collecting, rollouts, leaves, order)
    slopes = torch.autograd.grad(expected, list(leaves.values()), materialize_grads=True)
    normalizer = None
    if settings.policy.normalize_observations:
        normalizer = Normalizer(MEAN.astype(np.float32), (1.0 / STD).astype(np.float32))
    kinds: tuple[type[Backend], ...] = (AutogradBackend, CompiledBackend)
    found = {}
    for kind in kinds:
        if kind.supports(settings.inner, settings.outer, spec):
            backend = kind(settings.inner, settings.outer, spec)
            start = {name: value.float() for name, value in collecting.items()}
            batch = MetaBatchBuilder(settings, backend, start, normalizer).build(rollouts)
            here = {name: value.float() for name, value in theta.items()}
            loss, _, gradient = backend.value_and_grad(here, batch, order)
            found[kind.__name__] = (
                abs(float(loss) - float(expected.detach())),
                oracles.relative_error(gradient, dict(zip(theta, slopes, strict=True))),
            )
    return found


@pytest.mark.parametrize("chosen", covering(), ids=name_of)
def test_the_meta_gradient_of_a_combination_is_the_references(chosen: Combination) -> None:
    found = errors(chosen)
    assert "AutogradBackend" in found
    for backend, (loss, gradient) in found.items():
        assert loss < 3e-6, backend
        assert gradient < 3e-6, backend  # rounding to float32 alone
