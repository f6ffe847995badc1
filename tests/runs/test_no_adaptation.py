"""Without inner steps, training is plain policy optimization on the joint data of all tasks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.backends.inner_step import adapt_policy
from maml_ray.config.sections import TrustRegionSettings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import LOG_STD
from tests.learning_runs import Run, change
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters


@pytest.fixture
def plain(small_settings: Settings) -> Settings:
    return change(small_settings, "inner", steps=0)


def together(samples: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Concatenate all tasks: observations, actions, log-probabilities, advantages."""
    return (
        samples.observations.flatten(end_dim=1),
        samples.actions.flatten(end_dim=1),
        samples.log_probs.flatten(),
        samples.advantages.flatten(),
    )


def test_only_query_data_are_collected_and_they_are_before_as_well_as_after(
    plain: Settings,
) -> None:
    run = Run(plain)
    rollouts = run.collect()
    assert all(task.support == () for task in rollouts)
    metrics = run.learner.update(rollouts)
    assert metrics.env_steps == 3 * 2 * 20
    assert metrics.return_before == metrics.return_after
    assert metrics.speed_before == metrics.speed_after
    assert metrics.inner_kl == 0.0
    assert metrics.order_cosine == pytest.approx(1.0, abs=1e-5)
    assert metrics.collector_ratio_error < 1e-4


def test_ppo_is_plain_ppo_on_the_joint_data(plain: Settings) -> None:
    settings = change(plain, "outer", epochs=4, learning_rate=0.01, max_query_kl=None)
    run = Run(settings)
    rollouts = run.collect()
    spec, batch = run.learner.spec, run.learner.prepare(rollouts)
    theta = {n: v.detach().clone().requires_grad_() for n, v in run.learner.parameters.items()}
    adam = torch.optim.Adam(theta.values(), lr=0.01)
    observations, actions, recorded, advantages = together(batch.query)
    for _ in range(4):
        policy = meta_oracles.action_distribution(spec, theta, observations)
        ratio = torch.exp(policy.log_prob(actions) - recorded)
        bounded = ratio.clamp(0.7, 1.3)
        loss = -torch.minimum(ratio * advantages, bounded * advantages).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    run.learner.update(rollouts)
    moved = oracles.flat(run.learner.parameters)
    start = oracles.flat(Run(settings).learner.parameters)
    assert float((moved - start).abs().max()) > 0.02
    torch.testing.assert_close(moved, oracles.flat(theta), rtol=1e-3, atol=2e-4)


def natural_direction(theta: Parameters, query: Any, damping: float) -> Parameters:
    """Natural gradient of a linear policy: each action's Fisher matrix is ``E[x x^T] / s^2``.

    ``x`` is the observation and a one; the Fisher matrix of the log deviations is 2.
    """
    x, actions, _, advantages = together(query)
    x = torch.cat([x, torch.ones(len(x), 1).double()], dim=1)
    variance = torch.exp(2 * theta[LOG_STD])
    weights = torch.cat([theta["mean.weight"], theta["mean.bias"][:, None]], dim=1)
    error = actions - x @ weights.T
    outer = x.T @ x / len(x)
    rows = []
    for action in range(len(variance)):
        slope = (error[:, action] / variance[action] * advantages) @ x / len(x)
        fisher = outer / variance[action] + damping * torch.eye(x.shape[1]).double()
        rows.append(torch.linalg.solve(fisher, slope))
    solved = torch.stack(rows)
    of_deviation = ((error**2 / variance - 1) * advantages[:, None]).mean(dim=0)
    return {
        "mean.weight": solved[:, :-1],
        "mean.bias": solved[:, -1],
        LOG_STD: of_deviation / (2 + damping),
    }


def test_trpo_is_the_natural_gradient_of_the_joint_data(plain: Settings) -> None:
    settings = change(
        change(plain, "policy", hidden_sizes=()),
        "outer",
        objective="trpo",
        trust_region=TrustRegionSettings(max_kl=1e-3, damping=0.1, cg_iterations=50),
    )
    run = Run(settings)
    run.learner.update(run.collect())  # so that observations are normalized
    rollouts = run.collect()
    batch: MetaBatch = meta_oracles.tree_map(lambda t: t.double(), run.learner.prepare(rollouts))
    before = {name: value.detach().double() for name, value in run.learner.parameters.items()}
    metrics = run.learner.update(rollouts)
    assert metrics.gradient_steps == 1
    moved = {n: v.detach().double() - before[n] for n, v in run.learner.parameters.items()}
    direction = natural_direction(before, batch.query, 0.1)
    ours, expected = (oracles.flat({n: part[n] for n in before}) for part in (moved, direction))
    cosine = float(ours @ expected / (ours.norm() * expected.norm()))
    assert cosine > 0.9999
    assert 0.3e-3 < metrics.query_kl <= 1e-3 * (1 + 1e-3)


def test_the_policy_can_be_adapted_all_the_same(plain: Settings) -> None:
    """An evaluation can fine-tune it with one step of the inner rate."""
    run = Run(plain)
    run.learner.update(run.collect())
    published = run.learner.publish()
    agent = Agent(run.settings, run.learner.spec, dict(published.values), published.normalizer)
    support = agent.collect_support(episodes=2, seed=1)
    theta = published.values
    one_step = change(run.settings, "inner", steps=1)
    adapted, expected = (
        adapt_policy(
            each.inner,
            each.advantages,
            run.learner.spec,
            theta,
            support,
            published.normalizer,
        )
        for each in (run.settings, one_step)
    )
    assert all(np.array_equal(adapted[name], expected[name]) for name in expected)
    assert max(np.abs(adapted[name] - theta[name]).max() for name in theta) > 1e-4
    assert agent.adapt(support).adaptation_steps == 1


def test_a_learned_rate_that_is_never_used_stays(plain: Settings) -> None:
    run = Run(change(plain, "inner", learn_inner_rates=True))
    for _ in range(2):
        run.learner.update(run.collect())
    for name, value in run.learner.publish().values.items():
        if "/" in name:
            np.testing.assert_allclose(value, math.log(0.1), rtol=1e-6)
