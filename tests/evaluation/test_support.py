"""Support data of a policy that adapts a context: each episode acts with its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.evaluation.adaptation_stats import adaptation_stats
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.support import support_seeds
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.runs.adapt import adapt_run
from tests.docs.pages import python_block
from tests.small_runs import agent_of, run_of, settings

GOAL = {"x": 0.3, "y": -0.1}
OFFSETS = [[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0], [0.0, 0.0]]
"""Of five episodes and two numbers: pairs, and an odd one that acts with the policy's context."""
RATES = (2.0, 5.0)
CONTEXT_SETTINGS: dict[str, Any] = {
    "inner": {
        "parameters": "context",
        "context_size": 2,
        "learning_rate": 3.0,
        "learn_inner_rates": True,
    },
    "policy": {"hidden_sizes": [8], "action_scale": 1.0, "initial_log_std": -3.0},
    "meta_batch": {"episodes": 5},
}


def context_agent() -> Agent:
    """Return an agent whose context of two numbers, with a rate each, moves its actions a lot."""
    agent = agent_of(settings(**CONTEXT_SETTINGS))
    changed = {
        "log_inner_rate/context": np.log(np.array(RATES, np.float32)),
        "mean.weight": 30 * agent.parameters["mean.weight"],
    }
    return replace(agent, parameters={**agent.parameters, **changed})


@pytest.fixture
def agent() -> Agent:
    return context_agent()


def slow_policy(agent: Agent, context: NDArray[Any], observation: NDArray[Any]) -> list[float]:
    """Return the mean action of a policy before any step with a context, number by number."""
    p = {name: value.astype(np.float64) for name, value in agent.parameters.items()}
    hidden = []
    for unit in range(8):
        total = p["hidden_0.bias"][unit]
        for weight, seen in zip(p["hidden_0.weight"][unit], observation, strict=True):
            total += weight * seen
        for weight, number in zip(p["context_weight"][unit], context, strict=True):
            total += weight * math.tanh(number)
        hidden.append(math.tanh(total))
    return [
        bias + sum(weight * value for weight, value in zip(row, hidden, strict=True))
        for row, bias in zip(p["mean.weight"], p["mean.bias"], strict=True)
    ]


def slow_gradient(support: Trajectories) -> list[float]:
    """Return half the difference of the returns per step and unit, averaged over the pairs."""
    per_step = [math.fsum(rewards) / 8 for rewards in support.rewards.astype(float)]
    return [(per_step[i] - per_step[i + 1]) / (2 * 2.0) for i in (0, 2)]


def assert_same(first: Agent, second: Agent) -> None:
    assert set(first.parameters) == set(second.parameters)
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], value)


def test_each_episode_acts_with_its_context(agent: Agent) -> None:
    support = agent.collect_support(GOAL, seed=3)
    np.testing.assert_array_equal(support.context_offsets, OFFSETS)
    np.testing.assert_array_equal(agent.context_offsets(), OFFSETS)
    np.testing.assert_array_equal(agent.context_offsets(2), OFFSETS[:2])
    adapted = agent.adapt(support)
    observation = np.array([0.4, -0.2])
    for acting in (agent, adapted):
        for each, offset in zip(acting.support_agents(), OFFSETS, strict=True):
            expected = slow_policy(agent, np.array(offset), observation)
            found = each.policy.forward(observation.astype(np.float32))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    equal = agent.support_agents(6)
    assert equal[4] is equal[0], "episodes that act alike share an agent"


def test_a_support_agent_acts_as_its_episode_does(agent: Agent) -> None:
    for acting in (agent, agent.adapt(GOAL)):
        support = acting.collect_support(GOAL, seed=3)
        plain = acting.collect(GOAL, seed=3)
        assert plain.context_offsets is None
        for k, each in enumerate(acting.support_agents()):
            alone = each.collect(GOAL, episodes=5, seed=3)
            for name in ("observations", "actions", "log_probs", "rewards"):
                found, expected = getattr(support, name)[k], getattr(alone, name)[k]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
            distance = np.abs(support.actions[k] - plain.actions[k]).max()
            if acting is agent:
                assert (distance > 0.05) == (k < 4), "the last episode has no pair"


def test_without_a_context_all_episodes_are_the_agents_own() -> None:
    agent = agent_of(settings())
    assert agent.context_size is None
    assert agent.context_offsets() is None
    assert agent.support_agents(2) == [agent, agent]
    assert len(agent.support_agents()) == agent.settings.meta_batch.episodes
    support, plain = (collect(GOAL, seed=3) for collect in (agent.collect_support, agent.collect))
    assert support.context_offsets is None
    np.testing.assert_array_equal(support.actions, plain.actions)


def test_steps_follow_central_differences_of_the_return(agent: Agent) -> None:
    total, acting = np.zeros(2), agent
    for seed in (1, 2):
        support = acting.collect_support(GOAL, seed=seed)
        gradient = slow_gradient(support)
        total += np.multiply(RATES, gradient)
        context = total / seed
        before, acting = acting, acting.adapt(support)
        np.testing.assert_allclose(acting.parameters["context"], context, rtol=1e-5)
        observation = np.array([0.4, -0.2])
        np.testing.assert_allclose(
            acting.policy.forward(observation.astype(np.float32)),
            slow_policy(agent, context, observation),
            rtol=1e-5,
            atol=1e-6,
        )
        stats = adaptation_stats(before, acting, support)
        assert stats.gradient_norm == pytest.approx(math.hypot(*gradient), rel=1e-5)
        assert stats.kl > 0.0
    assert np.abs(context).min() > 1e-3
    unmoved = [name for name in agent.parameters if name != "hidden_0.bias"]
    for name in unmoved:
        np.testing.assert_array_equal(acting.parameters[name], agent.parameters[name])


def test_adapting_to_a_task_collects_a_support_set_before_each_step(agent: Agent) -> None:
    by_hand = agent
    for step in range(2):
        seed = seed_sequence(7, Purpose.EVALUATION, 2, step)
        by_hand = by_hand.adapt(by_hand.collect_support(GOAL, episodes=4, seed=seed))
    assert_same(by_hand, agent.adapt(GOAL, steps=2, episodes=4, seed=7))
    seeds = support_seeds(7)
    adapted = agent.adapt(
        lambda now: now.collect_support(GOAL, episodes=4, seed=next(seeds)), steps=2
    )
    assert_same(by_hand, adapted)


def test_evaluating_collects_support_data(agent: Agent) -> None:
    found = maml_ray.evaluate(agent, tasks=1, episodes=3, steps=1, seed=5)
    (task,) = agent.sample_tasks(1, seed=5)

    def stream(*key: int) -> np.random.SeedSequence:
        return seed_sequence(5, Purpose.EVALUATION, 0, *key)

    adapted = agent.adapt(agent.collect_support(task, seed=stream(0, 0)))
    expected = adapted.collect(task, episodes=3, seed=stream(1, 1)).returns
    (after,) = (m for m in found.measurements if (m.steps, m.actions) == (1, "stochastic"))
    assert after.returns == tuple(expected.tolist())


def test_the_command_adapts_a_context(tmp_path: Path) -> None:
    folder = run_of(settings(**CONTEXT_SETTINGS), tmp_path / "run")
    saved = adapt_run(folder.path, GOAL, steps=2, episodes=4, seed=7)
    expected = maml_ray.load(folder.path).adapt(GOAL, steps=2, episodes=4, seed=7)
    assert_same(expected, maml_ray.load(saved.folder))


def test_log_probs_are_not_needed(agent: Agent) -> None:
    support = agent.collect_support(GOAL, seed=1)
    unknown = replace(support, log_probs=np.full_like(support.log_probs, np.nan))
    assert_same(agent.adapt(support), agent.adapt(unknown))


def test_the_documented_robot_adapts_a_context(agent: Agent) -> None:
    """Of its pair of contexts, the better one is approached."""
    names: dict[str, Any] = {"agent": agent, "maml_ray": maml_ray}
    exec(python_block("evaluation.md", "support_agents"), names)
    support: Trajectories = names["support"]
    np.testing.assert_array_equal(support.context_offsets, agent.context_offsets(10))
    for k, each in enumerate(agent.support_agents(10)):
        noise = support.actions[k] - each.policy.forward(support.observations[k])
        assert np.abs(noise[support.mask[k]]).max() < 5 * float(each.policy.std.max())
    context = names["adapted_to_data"].parameters["context"]
    firsts, seconds = support.returns[[0, 4, 8]].sum(), support.returns[[1, 5, 9]].sum()
    assert (context[0] > 0.0) == (firsts > seconds)


def test_adapted_and_support_agents_are_saved_and_loaded(agent: Agent, tmp_path: Path) -> None:
    agents = {"adapted": agent.adapt(GOAL), "support": agent.support_agents()[1]}
    for name, each in agents.items():
        each.save(tmp_path / name)
        loaded = maml_ray.load(tmp_path / name)
        assert_same(each, loaded)
        support = each.collect_support(GOAL, seed=4)
        assert_same(each.adapt(support), loaded.adapt(support))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "has no context_offsets: this policy adapts a context, .* agent.support_agents"),
        (lambda offsets: offsets[:, :1], r"must be 2 finite numbers .*, got shape \(5, 1\)"),
        (lambda offsets: offsets * np.float32(np.nan), "must be 2 finite numbers"),
        (lambda offsets: offsets * 0, "must come in pairs"),
        (lambda offsets: np.abs(offsets), "must come in pairs"),
    ],
)
def test_data_that_do_not_tell_of_a_context_are_refused(
    agent: Agent, change: Callable[[NDArray[Any]], NDArray[Any]] | None, message: str
) -> None:
    support = agent.collect(GOAL)
    if change is not None:
        support = replace(support, context_offsets=change(np.array(OFFSETS, np.float32)))
    with pytest.raises(UserError, match=message) as refused:
        agent.adapt(support)
    assert "\n" not in str(refused.value)


def test_offsets_for_a_policy_without_a_context_are_refused() -> None:
    agent = agent_of(settings())
    support = replace(
        agent.collect(GOAL, episodes=5), context_offsets=np.array(OFFSETS, np.float32)
    )
    with pytest.raises(UserError, match=r"no context \(inner.parameters = all\): leave them out"):
        agent.adapt(support)


def test_one_episode_is_too_few_to_move_a_context_by(agent: Agent, tmp_path: Path) -> None:
    folder = run_of(settings(**CONTEXT_SETTINGS), tmp_path / "run")
    for use in (
        lambda: agent.support_agents(1),
        lambda: agent.context_offsets(1),
        lambda: agent.collect_support(GOAL, episodes=1),
        lambda: agent.adapt(GOAL, episodes=1),
        lambda: maml_ray.evaluate(agent, tasks=1, episodes=1, adaptation_episodes=1),
        lambda: adapt_run(folder.path, GOAL, episodes=1),
    ):
        with pytest.raises(UserError, match="1 support episode is not enough"):
            use()
    for wrong in (0, 2.5, "3"):
        with pytest.raises(UserError, match=r"episodes = .* is not allowed"):
            agent.support_agents(wrong)  # type: ignore[arg-type]


def test_an_episode_counts_with_its_pair_only(agent: Agent) -> None:
    """Of a pair that has lost an episode neither counts; the other pairs do."""
    support = agent.collect_support(GOAL, episodes=4, seed=1)

    def of(*episodes: int) -> Trajectories:
        rows = list(episodes)
        arrays = {
            name: getattr(support, name)[rows]
            for name in ("observations", "actions", "log_probs", "rewards", "mask")
        }
        assert support.context_offsets is not None
        return Trajectories(**arrays, context_offsets=support.context_offsets[rows])

    with pytest.raises(UserError, match="of an episode that was lost leave out its pair"):
        agent.adapt(of(0, 1, 2))
    context = agent.adapt(of(2, 3)).parameters["context"]
    whole = agent.adapt(support).parameters["context"]
    np.testing.assert_array_equal(context, [0.0, whole[1]])
