"""A batch of requests gives the actions of ``agent.act`` for each request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maml_ray.evaluation.agent import Agent
from maml_ray.policies.action_sampler import from_env_actions, make_sampler, to_env_actions
from maml_ray.serving.batching import act_batch
from maml_ray.serving.http.act_body import ActRequest, ActResponse
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy
from tests.evaluation.test_agent import discrete_agent
from tests.small_runs import agent_of, settings


@pytest.fixture(params=["continuous", "discrete"])
def agents(request: pytest.FixtureRequest) -> tuple[Agent, Agent]:
    """Return two policies of the same kind."""
    if request.param == "discrete":
        first = discrete_agent()
        other = {name: -value for name, value in first.parameters.items()}
        return first, replace(first, parameters=other)
    found = agent_of(settings("half-cheetah-direction"))
    return found, found.adapt(found.collect_support(seed=1))


def request_for(observations: Any, *, explore: bool = False, seed: int | None = None) -> ActRequest:
    return ActRequest("base", observations, single=False, explore=explore, seed=seed)


def test_requests_of_two_policies_in_one_batch(agents: tuple[Agent, Agent]) -> None:
    rng = np.random.default_rng(0)
    size = agents[0].spec.observation_size
    served = [ServedPolicy(f"p{i}", agent) for i, agent in enumerate(agents)]
    batch = []
    for number in range(12):
        observations = rng.standard_normal((1 + number % 3, size)).astype(np.float32)
        request = request_for(observations, explore=number % 4 == 0, seed=number)
        batch.append((served[number % 2], request))
    answers = act_batch(batch)
    for (policy, request), answer in zip(batch, answers, strict=True):
        assert isinstance(answer, ActResponse)
        assert answer.policy == policy.name
        noise = np.random.default_rng(request.seed)
        expected = policy.agent.act(request.observations, explore=request.explore, rng=noise)
        assert answer.actions.dtype == expected.dtype
        np.testing.assert_allclose(answer.actions, expected, rtol=1e-5, atol=1e-6)


def test_a_single_request_equals_the_agent_to_the_bit(agents: tuple[Agent, Agent]) -> None:
    agent = agents[1]
    size = (5, agent.spec.observation_size)
    observations = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    for explore in (False, True):
        request = request_for(observations, explore=explore, seed=7)
        (answer,) = act_batch([(ServedPolicy("p", agent), request)])
        assert isinstance(answer, ActResponse)
        expected = agent.act(observations, explore=explore, rng=np.random.default_rng(7))
        np.testing.assert_array_equal(answer.actions, expected)
        if explore:
            sampler = make_sampler(agent.policy, 1, 5, np.random.default_rng(7))
            sampler.act(0, observations)
            np.testing.assert_array_equal(answer.log_probs, sampler.log_probs()[0])
            assert answer.samples is not None
            given = answer.samples
            if not agent.spec.discrete:
                given = agent.to_env_actions(given)
            np.testing.assert_array_equal(given, expected)
        else:
            assert answer.log_probs is None


def test_an_overflowing_request_fails_alone() -> None:
    agent = replace(agent_of(settings()), normalizer=None)
    weights = {name: np.abs(value) * np.float32(1e30) for name, value in agent.parameters.items()}
    weights["mean.weight"] = np.full_like(weights["mean.weight"], 3e38)
    served = ServedPolicy("p", replace(agent, parameters=weights))
    calm, wild = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    answers = act_batch(
        [(served, request_for(calm)), (served, request_for(wild)), (served, request_for(calm))]
    )
    assert [type(answer) for answer in answers] == [ActResponse, ApiError, ActResponse]


def test_an_environments_actions_are_recorded_ones_again(agents: tuple[Agent, Agent]) -> None:
    spec = agents[0].spec
    observations = np.random.default_rng(2).standard_normal((50, spec.observation_size))
    recorded = make_sampler(agents[0].policy, 1, 50, np.random.default_rng(3)).act(
        0, observations.astype(np.float32)
    )
    for scale in (1.0, 0.5):  # powers of two, and no bounds: to the bit
        scaled = replace(spec, action_scale=scale, action_bounds=None)
        back = from_env_actions(scaled, to_env_actions(scaled, recorded))
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, recorded)
    scaled = replace(spec, action_scale=0.1, action_bounds=None)
    back = from_env_actions(scaled, to_env_actions(scaled, recorded))
    np.testing.assert_allclose(back, recorded, rtol=1e-6)
