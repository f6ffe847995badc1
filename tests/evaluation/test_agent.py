from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

import maml_ray
from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.support import support_seeds
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.maml.distributions import to_numpy
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.task import Task
from tests.oracles import naive as oracles
from tests.small_runs import agent_of, settings


def fresh_agent(settings: Settings) -> Agent:
    spec = policy_spec(settings)
    published = MetaLearner(settings, spec).publish()
    return Agent(settings, spec, dict(published.values), published.normalizer)


@pytest.fixture
def agent() -> Agent:
    return fresh_agent(Settings())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_its_repr_names_task_and_sizes_and_shows_no_arrays(agent: Agent) -> None:
    size = sum(value.size for value in agent.parameters.values())
    assert repr(agent) == (
        "Agent(task='half-cheetah-backward', observation_size=17, action_size=6, "
        f"parameters={size}, adaptation_steps=0)"
    )


@pytest.mark.usefixtures("two_threads")
def test_an_agent_adapts_as_a_rollout_actor_does_with_any_number_of_threads(agent: Agent) -> None:
    support = agent.collect_support(seed=1)
    by_two = agent.adapt(support)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)  # as an actor has it
    by_one = agent.adapt(support)
    for name, value in by_one.parameters.items():
        np.testing.assert_array_equal(by_two.parameters[name], value)


def test_adapting_leaves_the_agent_as_it_was(agent: Agent) -> None:
    before = {name: value.copy() for name, value in agent.parameters.items()}
    adapted = agent.adapt([agent.collect_support(seed=1), agent.collect_support(seed=2)])
    assert (agent.adaptation_steps, adapted.adaptation_steps) == (0, 2)
    for name, value in before.items():
        np.testing.assert_array_equal(agent.parameters[name], value)
        assert not np.array_equal(adapted.parameters[name], value)


def test_exploring_adds_noise_of_the_policys_size(agent: Agent) -> None:
    observations = np.zeros((20_000, 17))
    noise = agent.act(observations, explore=True, rng=np.random.default_rng(0)) - agent.act(
        observations
    )
    np.testing.assert_allclose(noise.std(axis=0), agent.policy.std, rtol=0.03)


def test_actions_are_scaled_for_the_environment() -> None:
    settings = validate_settings({"policy": {"action_scale": 2.5}})
    plain, scaled = fresh_agent(Settings()), fresh_agent(settings)
    observations = np.random.default_rng(0).standard_normal((5, 17))
    np.testing.assert_array_equal(
        scaled.act(observations), plain.act(observations) * np.float32(2.5)
    )
    noisy, plainly = (
        agent.act(observations, explore=True, rng=np.random.default_rng(1))
        for agent in (scaled, plain)
    )
    np.testing.assert_array_equal(noisy, plainly * np.float32(2.5))
    assert scaled.act(observations[0]).shape == (6,)


def discrete_agent(first_action: int = -1) -> Agent:
    spec = PolicySpec(3, 4, (8,), "tanh", 0.0, -3.0, discrete=True, first_action=first_action)
    parameters = oracles.random_parameters(spec, np.random.default_rng(0))
    return Agent(Settings(), spec, to_numpy(parameters), None)


def test_a_discrete_agent_gives_the_environments_integers() -> None:
    agent = discrete_agent()
    observations = np.random.default_rng(1).standard_normal((2, 50, 3)).astype(np.float32)
    actions = agent.act(observations)
    assert actions.dtype == np.int64
    assert actions.shape == (2, 50)
    assert set(actions.ravel()) <= {-1, 0, 1, 2}
    np.testing.assert_array_equal(actions, agent.policy.forward(observations).argmax(-1) - 1)
    one = agent.act(observations[1, 7])
    assert one.shape == ()
    assert int(one) == actions[1, 7]
    chosen = agent.act(observations, explore=True, rng=np.random.default_rng(2))
    assert set(chosen.ravel()) == {-1, 0, 1, 2}
    assert (chosen != actions).any()


@pytest.mark.parametrize("shape", [(), (4,), (5, 2)])
def test_observations_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="last axis 3"):
        discrete_agent().act(np.zeros(shape))


def point_agent() -> Agent:
    return agent_of(settings(task={"horizon": 20}))


def test_predict_is_what_stable_baselines3_evaluates() -> None:
    agent = point_agent()
    env = gym.make("maml_ray/PointNavigation-v0", goal=(0.3, -0.1), max_episode_steps=20)
    mean, std = evaluate_policy(agent, env, n_eval_episodes=3, warn=False)
    ours = agent.collect({"x": 0.3, "y": -0.1}, episodes=1, explore=False).returns
    assert mean == pytest.approx(ours[0], rel=1e-5)
    assert std == pytest.approx(0.0, abs=1e-6)
    sampled, _ = evaluate_policy(
        agent, env, n_eval_episodes=3, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert len(set(sampled)) == 3


def test_predict_passes_the_state_on_and_samples_unless_told_otherwise() -> None:
    agent = point_agent()
    observations = np.random.default_rng(0).standard_normal((4, 2))
    state = (np.zeros(1),)
    actions, after = agent.predict(observations, state, np.zeros(4, np.bool_), deterministic=True)
    assert after is state
    np.testing.assert_array_equal(actions, agent.act(observations))
    assert (agent.predict(observations)[0] != actions).all()
    assert agent.predict(observations[0])[0].shape == (2,)
    actions, after = discrete_agent().predict(np.zeros((2, 3)), deterministic=True)
    assert actions.dtype == np.int64
    assert actions.shape == (2,)
    assert after is None


def test_a_saved_agent_is_loaded_as_it_was(tmp_path: Path) -> None:
    agent = point_agent().adapt({"x": 0.3, "y": -0.1})
    agent.save(str(tmp_path / "policy"))
    loaded = maml_ray.load(tmp_path / "policy")
    assert_same(agent, loaded)
    assert loaded.adaptation_steps == 1
    with pytest.raises(RunDirError, match="already exists"):
        agent.save(tmp_path / "policy")


def assert_same(first: Agent, second: Agent) -> None:
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], value)


GOAL = {"x": 0.3, "y": -0.1}


def test_a_support_set_for_each_step_is_collected_by_the_policy_before_it() -> None:
    agent = point_agent()
    collectors: list[Agent] = []
    seeds = support_seeds(7)

    def collect(current: Agent) -> Trajectories:
        collectors.append(current)
        return current.collect_support(GOAL, episodes=4, seed=next(seeds))

    adapted = agent.adapt(collect, steps=3)
    assert [each.adaptation_steps for each in collectors] == [0, 1, 2]
    assert collectors[0] is agent
    by_hand = agent
    for step in range(3):
        seed = seed_sequence(7, Purpose.EVALUATION, 2, step)
        by_hand = by_hand.adapt(by_hand.collect_support(GOAL, episodes=4, seed=seed))
    assert_same(by_hand, adapted)
    for wanted in (GOAL, agent.task(GOAL)):
        assert_same(adapted, agent.adapt(wanted, steps=3, episodes=4, seed=7))
    assert_different(adapted, agent.adapt(GOAL, steps=3, episodes=4, seed=8))
    assert_different(adapted, agent.adapt(GOAL, steps=2, episodes=4, seed=7))
    seeds = support_seeds(7)
    sets = [each.collect_support(GOAL, episodes=4, seed=next(seeds)) for each in collectors]
    assert_same(adapted, agent.adapt(sets))
    assert_same(adapted, agent.adapt(sets, steps=3))


def assert_different(first: Agent, second: Agent) -> None:
    assert any((first.parameters[n] != value).any() for n, value in second.parameters.items())


@pytest.mark.parametrize(("inner_steps", "expected"), [(0, 1), (2, 2)])
def test_a_task_takes_the_runs_number_of_steps(inner_steps: int, expected: int) -> None:
    agent = agent_of(settings(inner={"steps": inner_steps}))
    assert agent.adapt(GOAL).adaptation_steps == expected
    assert agent.adapt(lambda now: now.collect_support(GOAL)).adaptation_steps == expected


def with_nan(support: Trajectories) -> Trajectories:
    rewards = support.rewards.copy()
    rewards[0, 0] = np.nan
    return replace(support, rewards=rewards)


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        (lambda support: support, 3, "steps = 3 needs 3 support sets, got 1: each inner step"),
        (lambda support: [support] * 2, 1, "steps = 1 needs 1 support sets, got 2"),
        (lambda support: support, 0, "steps = 0 is not allowed"),
        (with_nan, None, "the rewards of the support set are not all finite"),
        (lambda support: [support.rewards], None, "a support set is maml_ray.Trajectories"),
        (lambda support: lambda agent: None, None, "a support set is maml_ray.Trajectories"),
        (
            lambda support: replace(support, mask=np.zeros_like(support.mask)),
            None,
            "the support set has no steps",
        ),
        (
            lambda support: replace(support, actions=support.actions[..., :1]),
            None,
            "actions of size 1, the policy 2 and 2",
        ),
    ],
)
def test_data_that_cannot_be_adapted_to_are_refused(
    change: Callable[[Trajectories], Any], steps: int | None, message: str
) -> None:
    agent = point_agent()
    with pytest.raises(UserError, match=message):
        agent.adapt(change(agent.collect_support(GOAL)), steps=steps)


@pytest.mark.parametrize("wanted", ["forward", {"speed": 1.0}, Task("x", (("z", 1.0),))])
def test_a_task_that_the_family_lacks_is_refused(wanted: Any) -> None:
    agent = point_agent()
    for use in (agent.collect, agent.adapt, agent.task):
        with pytest.raises(UserError, match="there is no such task of point-navigation: ") as error:
            use(wanted)
        assert '"x": ' in str(error.value)


def test_notebooks_show_a_table(agent: Agent) -> None:
    html = agent._repr_html_()
    assert "<td>half-cheetah-backward</td>" in html
    assert "17 x 64 x 64 x 6, tanh, Gaussian" in html
    assert ElementTree.fromstring(html).tag == "table"


def test_the_repr_of_trajectories_fits_a_line() -> None:
    support = point_agent().collect_support(GOAL, episodes=2)
    assert repr(support) == (
        "Trajectories(episodes=2, env_steps=40, observation_size=2, action_size=2, "
        f"mean return {support.returns.mean():.1f})"
    )
