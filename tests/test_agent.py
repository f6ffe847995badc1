from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from maml_ray.agent import Agent
from maml_ray.config import Settings
from maml_ray.learner import MetaLearner
from maml_ray.rollout import RolloutWorker


@pytest.fixture
def worker() -> RolloutWorker:
    return RolloutWorker(Settings())


@pytest.fixture
def agent(worker: RolloutWorker) -> Agent:
    published = MetaLearner(worker.settings, worker.spec).publish()
    return Agent(worker.settings, worker.spec, dict(published.values), published.normaliser)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_an_agent_adapts_as_a_rollout_actor_does_whatever_the_threads(agent: Agent) -> None:
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
