from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.maml.distributions import to_numpy
from maml_ray.policies.spec import PolicySpec
from tests.oracles import naive as oracles


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
    support = agent.collect(seed=1)
    by_two = agent.adapt(support)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)  # as an actor has it
    by_one = agent.adapt(support)
    for name, value in by_one.parameters.items():
        np.testing.assert_array_equal(by_two.parameters[name], value)


def test_adapting_leaves_the_agent_as_it_was(agent: Agent) -> None:
    before = {name: value.copy() for name, value in agent.parameters.items()}
    adapted = agent.adapt([agent.collect(seed=1), agent.collect(seed=2)])
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
