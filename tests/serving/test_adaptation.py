"""The service adapts exactly as ``Agent.adapt`` does."""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

import maml_ray
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import to_numpy
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.runs.adapt import adapt_run
from maml_ray.serving.adaptation import AdaptResponse, handle_adapt_request
from maml_ray.serving.http.adapt_body import SupportBody, to_trajectories
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.ray_serve import AdapterDeployment, StoreDeployment
from maml_ray.serving.served_policy import ServedPolicy, load_base_policy
from maml_ray.serving.settings import ServeSettings, parse_serve_settings
from tests.evaluation.test_support import context_agent
from tests.oracles import naive as oracles
from tests.serving.bodies import body_of
from tests.small_runs import agent_of, run_of, settings


def respond(agent: Agent, **request: Any) -> AdaptResponse | ApiError:
    return handle_adapt_request(
        orjson.dumps(request),
        lambda name: ServedPolicy("start", agent),
        limits=ServeSettings(run="unused").limits,
        max_env_steps=100_000,
    )


def adapt(agent: Agent, **request: Any) -> AdaptResponse:
    outcome = respond(agent, **request)
    assert isinstance(outcome, AdaptResponse), outcome
    return outcome


def assert_same(first: Agent, second: Agent) -> None:
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], value)


def unscaled_settings(objective: str = "ratio", **sections: Any) -> Settings:
    """Return settings with an action scale of 1, so that actions are not rounded on the way."""
    inner = {"objective": objective, "learn_inner_rates": True}
    return settings(policy={"action_scale": 1.0}, inner=inner, **sections)


@pytest.fixture(params=["ratio", "dice", "log_prob"])
def agent(request: pytest.FixtureRequest) -> Agent:
    return agent_of(unscaled_settings(request.param))


def test_adapting_to_a_callers_data_equals_the_agents_own_to_the_bit(agent: Agent) -> None:
    support = agent.collect_support(seed=1)
    adapted = adapt(agent, trajectories=body_of(agent, support))
    assert_same(agent.adapt(support), adapted.policy.agent)
    assert adapted.policy.name.startswith("adapted-")
    assert adapted.adapted_from == "start"
    assert (adapted.return_before, adapted.return_after) == (None, None)
    assert any((adapted.policy.agent.parameters[n] != v).any() for n, v in agent.parameters.items())


def test_omitted_log_probs_are_the_policys_own(agent: Agent) -> None:
    support = agent.collect_support(seed=1)
    body = body_of(agent, support)
    del body["log_probs"], body["mask"], body["final_observations"], body["terminated"]
    found = to_trajectories(SupportBody.model_validate(body), agent)
    np.testing.assert_allclose(found.log_probs, support.log_probs, rtol=1e-4, atol=1e-5)
    adapted = adapt(agent, trajectories=body).policy.agent
    for name, value in agent.adapt(support).parameters.items():
        np.testing.assert_allclose(adapted.parameters[name], value, rtol=1e-4, atol=1e-6)


def test_data_of_another_policy_are_weighted_by_its_log_probs() -> None:
    agent = agent_of(unscaled_settings())
    other = agent.adapt(agent.collect_support(seed=5))
    support = other.collect_support(seed=1)
    adapted = adapt(agent, trajectories=body_of(agent, support)).policy.agent
    assert_same(agent.adapt(support), adapted)
    without = body_of(agent, support)
    del without["log_probs"]
    forgot = adapt(agent, trajectories=without).policy.agent
    assert any((forgot.parameters[n] != v).any() for n, v in adapted.parameters.items())


def test_adapting_to_a_task_equals_the_command(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run")
    base = load_base_policy(str(folder.path))
    assert base.name == "checkpoint-1"
    by_command = adapt_run(folder.path, {"x": 0.25, "y": -0.125}, steps=2, episodes=4, seed=3)
    adapted = adapt(base.agent, task={"x": 0.25, "y": -0.125}, steps=2, episodes=4, seed=3)
    assert_same(maml_ray.load(by_command.folder), adapted.policy.agent)
    assert adapted.return_before == by_command.before
    assert adapted.return_after == by_command.after
    assert len(adapted.steps) == 2
    assert adapted.policy.task is not None
    assert dict(adapted.policy.task.parameters) == {"x": 0.25, "y": -0.125}
    folder_of_policy = load_base_policy(str(by_command.folder))
    assert folder_of_policy.name.startswith("policy-")
    assert_same(folder_of_policy.agent, adapted.policy.agent)


def test_a_callers_data_and_a_task_to_measure_on() -> None:
    agent = agent_of(unscaled_settings())
    task = {"x": 0.25, "y": -0.125}
    support = agent.collect_support(seed=9)
    adapted = adapt(agent, task=task, trajectories=body_of(agent, support), measured_episodes=7)
    assert_same(agent.adapt(support), adapted.policy.agent)
    assert adapted.return_before == adapt(agent, task=task, measured_episodes=7).return_before
    assert adapted.return_after is not None
    unmeasured = adapt(agent, task=task, measured_episodes=0)
    assert (unmeasured.return_before, unmeasured.return_after) == (None, None)


def test_statistics_of_a_step_match_a_direct_computation() -> None:
    """Gradient from the step and its rate, KL from the closed form for Gaussians."""
    chosen = settings(policy={"action_scale": 1.0}, inner={"learning_rate": 0.5})
    agent = agent_of(chosen)
    support = agent.collect_support(seed=1, episodes=5)
    adapted = adapt(agent, trajectories=body_of(agent, support))
    (figures,) = adapted.steps
    after = adapted.policy.agent
    squares = sum(
        float((((value - after.parameters[name]).astype(np.float64) / 0.5) ** 2).sum())
        for name, value in agent.parameters.items()
    )
    assert figures.gradient_norm == pytest.approx(squares**0.5, rel=1e-4)
    total, count = 0.0, 0
    for episode, step in np.argwhere(support.mask):
        seen = support.observations[episode, step][None]
        old, new = agent.policy.forward(seen)[0], after.policy.forward(seen)[0]
        for a in range(agent.spec.action_size):
            s, t = float(agent.policy.std[a]), float(after.policy.std[a])
            gap = float(old[a]) - float(new[a])
            total += np.log(t / s) + (s * s + gap * gap) / (2 * t * t) - 0.5
        count += 1
    assert figures.kl == pytest.approx(total / count, rel=1e-3)
    assert figures.kl > 1e-4
    assert figures.support_return == pytest.approx(support.returns.mean())
    assert figures.env_steps == count == support.env_steps


def test_values_after_an_episodes_end_are_ignored() -> None:
    agent = agent_of(unscaled_settings())
    mask = np.ones((3, 8), np.bool_)
    mask[1, 5:] = mask[2, 1:] = False
    support = replace(agent.collect_support(seed=1), mask=mask)
    bodies = [body_of(agent, support), body_of(agent, support)]
    for name in ("observations", "samples", "rewards", "log_probs"):
        for episode, steps in ((1, range(5, 8)), (2, range(1, 8))):
            for step in steps:
                old = bodies[1][name][episode][step]
                bodies[1][name][episode][step] = [1e30] * len(old) if type(old) is list else -1e30
    first, second = (adapt(agent, trajectories=body).policy.agent for body in bodies)
    found = to_trajectories(SupportBody.model_validate(bodies[1]), agent)
    for array in (found.observations, found.actions, found.rewards, found.log_probs):
        assert not array[~mask].any()  # as Trajectories requires
    assert_same(first, second)


def test_discrete_actions_are_the_environments_integers() -> None:
    spec = PolicySpec(3, 4, (8,), "tanh", 0.0, -3.0, discrete=True, first_action=-1)
    parameters = to_numpy(oracles.random_parameters(spec, np.random.default_rng(0)))
    agent = Agent(Settings(), spec, parameters, None)
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((2, 5, 3)).astype(np.float32)
    actions = agent.act(observations, explore=True, rng=rng)
    body = {
        "observations": observations.tolist(),
        "actions": actions.tolist(),
        "rewards": rng.standard_normal((2, 5)).tolist(),
    }
    support = to_trajectories(SupportBody.model_validate(body), agent)
    np.testing.assert_array_equal(support.actions[..., 0], actions + 1)
    for wrong in (-2, 3, 0.5):
        bad = {**body, "actions": [[wrong] * 5, [0] * 5]}
        with pytest.raises(ApiError, match="whole numbers from -1 to 2"):
            to_trajectories(SupportBody.model_validate(bad), agent)


def test_a_context_is_adapted_to_a_callers_data_without_log_probs() -> None:
    agent = context_agent()
    for policy in (agent, agent.adapt({"x": 0.3, "y": -0.1})):
        support = policy.collect_support(seed=1)
        body = body_of(policy, support)
        response = adapt(policy, trajectories=body)
        assert_same(policy.adapt(support), response.policy.agent)
        assert 0.0 < response.steps[0].kl < math.inf
        del body["log_probs"]
        found = to_trajectories(SupportBody.model_validate(body), policy)
        assert np.isnan(found.log_probs).all()
        without = adapt(policy, trajectories=body)
        assert_same(response.policy.agent, without.policy.agent)
        assert without.steps == response.steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context_offsets": None}, ["must be an array of numbers"]),
        ({"context_offsets": [[2.0], [-2.0]]}, ["must have shape (5, 2), got (2, 1)"]),
        ({"context_offsets": [2.0, 1.0]}, ["must have shape (5, 2), got (2,)"]),
        ({"context_offsets": [[1e39, 0.0]] * 5}, ["must be finite"]),
        ({"context_offsets": [["2", 0.0]] * 5}, ["must be an array of numbers"]),
        ({"context_offsets": [[2.0, 0.0]] * 5}, ["must come in pairs"]),
        ({"context_offset": []}, ["context_offset", "'trajectories.context_offsets'"]),
        ({}, ["is missing", "POST /support returns the policies to act with"]),
    ],
)
def test_wrong_context_offsets_are_refused(change: dict[str, Any], words: list[str]) -> None:
    agent = context_agent()
    body = body_of(agent, agent.collect_support(seed=1))
    del body["context_offsets"]
    error = respond(agent, trajectories={**body, **change})
    assert isinstance(error, ApiError)
    assert error.status == 422
    assert "context_offset" in error.message
    assert "\n" not in error.message
    assert all(word in error.message for word in words), error.message


def test_policies_without_a_context_take_no_context_offsets() -> None:
    error = respond(agent_of(settings()), trajectories={**GOOD, "context_offsets": [[2.0]] * 3})
    assert isinstance(error, ApiError)
    assert error.status == 422
    assert "trajectories.context_offsets is not for this policy" in error.message


def test_clipped_actions_do_not_tell_what_was_sampled() -> None:
    agent = agent_of(unscaled_settings())  # of which nearly all samples are beyond 0.1
    support = agent.collect_support(seed=1)
    body = body_of(agent, support)
    clipped = agent.to_env_actions(support.actions)
    assert np.abs(clipped).max() == np.float32(0.1)
    both = {**body, "actions": clipped.tolist()}
    error = respond(agent, trajectories={k: v for k, v in both.items() if k != "samples"})
    assert isinstance(error, ApiError)
    assert "trajectories.actions lie at the environment's bounds" in error.message
    assert "send samples instead" in error.message
    inside = replace(support, actions=support.actions * np.float32(0.01))
    sent = body_of(agent, inside)
    sent["actions"] = sent.pop("samples")
    found = to_trajectories(SupportBody.model_validate(sent), agent)
    np.testing.assert_array_equal(found.actions, inside.actions)
    with pytest.raises(ValueError, match="either samples or actions"):
        SupportBody.model_validate({**body, "actions": body["samples"]})


def test_every_field_of_trajectories_that_a_caller_knows_can_be_sent() -> None:
    known = {field.name for field in fields(Trajectories)}
    assert set(SupportBody.model_fields) - {"samples"} == known - {"info_means", "discarded"}


OBSERVATIONS = [[[0.0, 0.0]] * 4] * 3
GOOD: dict[str, Any] = {
    "observations": OBSERVATIONS,
    "actions": OBSERVATIONS,
    "rewards": [[1.0, 2.0, 0.5, 0.0]] * 3,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": [1.0]}, ["rewards", "(episodes, steps)"]),
        ({"observations": [[[0.0]] * 4] * 3}, ["trajectories.observations", "(3, 4, 2)"]),
        ({"actions": [[[0.0, 0.0]] * 3] * 3}, ["trajectories.actions", "(3, 4, 2)", "(3, 3, 2)"]),
        ({"mask": [[True] * 4] * 2}, ["trajectories.mask", "(3, 4)"]),
        ({"mask": [[False] * 4] * 3}, ["trajectories.mask"]),
        ({"mask": [[True, False, True, True]] * 3}, ["trajectories.mask"]),
        ({"log_probs": [[0.0]] * 3}, ["trajectories.log_probs"]),
        ({"final_observations": [[0.0, 0.0]]}, ["trajectories.final_observations"]),
        ({"terminated": [True]}, ["trajectories.terminated"]),
    ],
)
def test_a_wrong_shape_names_its_field(change: dict[str, Any], words: list[str]) -> None:
    agent = agent_of(settings())
    adapt(agent, trajectories=GOOD)
    error = respond(agent, trajectories={**GOOD, **change})
    assert isinstance(error, ApiError)
    assert error.status == 422
    assert all(word in error.message for word in words), error.message


def test_a_policy_that_bootstraps_needs_to_know_how_episodes_ended() -> None:
    agent = agent_of(settings(advantages={"bootstrap_time_limit": True}))
    support = agent.collect_support(seed=1)
    adapt(agent, trajectories=body_of(agent, support))
    for name in ("final_observations", "terminated"):
        body = body_of(agent, support)
        del body[name]
        error = respond(agent, trajectories=body)
        assert isinstance(error, ApiError)
        assert f"trajectories.{name} is missing" in error.message


def test_an_unknown_task_and_too_much_simulation_are_rejected() -> None:
    agent = agent_of(settings())
    for request, word in (
        ({"task": {"z": 1.0}}, "no such task"),
        ({"task": {"x": 0.0, "y": 0.1}, "episodes": 100_000}, "at most 100,000"),
        ({"task": {"x": 0.0, "y": 0.1}, "measured_episodes": 100_000}, "measured_episodes"),
        ({"task": {"x": 0.0, "y": 0.1}, "steps": 100, "episodes": 999}, "steps"),
    ):
        error = respond(agent, **request)
        assert isinstance(error, ApiError), request
        assert error.status == 422
        assert word in error.message


def test_non_finite_parameters_are_rejected() -> None:
    agent = agent_of(settings())
    body = body_of(agent, agent.collect_support(seed=1))
    body["log_probs"] = [[-1000.0] * 8] * 3  # an infinite probability ratio
    error = respond(agent, trajectories=body)
    assert isinstance(error, ApiError)
    assert "not finite" in error.message


def test_a_family_that_is_not_installed_adapts_to_callers_data_alone() -> None:
    agent = agent_of(settings())
    task = agent.settings.task.model_copy(update={"name": "not_installed:Tasks"})
    there = replace(agent, settings=agent.settings.model_copy(update={"task": task}))
    adapt(there, trajectories=GOOD)
    error = respond(there, task={"x": 0.0})
    assert isinstance(error, ApiError)
    assert "cannot simulate it" in error.message


class Handle:
    """Stands in for Ray Serve's handle of a deployment: calls it in this process."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._deployment, name))


def test_the_adapter_of_ray_serve_parses_looks_up_and_adapts(tmp_path: Path) -> None:
    chosen = unscaled_settings()
    run = run_of(chosen, tmp_path / "run")
    agent = maml_ray.load(run.path)
    settings = parse_serve_settings({"run": str(run.path)})
    store = StoreDeployment(settings)
    store.reconfigure({"checkpoint": "newest"})
    adapter = AdapterDeployment(settings, Handle(store))  # type: ignore[arg-type]
    support = agent.collect_support(seed=1)
    body: dict[str, Any] = {"trajectories": body_of(agent, support)}
    response = asyncio.run(adapter.adapt(orjson.dumps(body)))
    assert isinstance(response, AdaptResponse), response
    assert_same(agent.adapt(support), response.policy.agent)
    for changes, status in (({"policy": "adapted-x"}, 404), ({"steps": 0}, 422)):
        error = asyncio.run(adapter.adapt(orjson.dumps(body | changes)))
        assert isinstance(error, ApiError)
        assert error.status == status
