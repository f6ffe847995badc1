"""Meta-parameters of the inner steps: where they start, what they do, what keeps them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.backends.inner_step import adapt_policy
from maml_ray.common.errors import RunDirError
from maml_ray.common.seeding import Purpose, generator
from maml_ray.config.sections import InnerSettings, RunSettings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.loading import load
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.state import initial_learner_state
from maml_ray.maml.distributions import to_torch
from maml_ray.maml.meta_parameters import (
    LOG_RATE,
    initial_meta_parameters,
    inner_rates,
    meta_parameter_shapes,
    policy_part,
)
from maml_ray.persistence.checkpoint_format import Checkpoint, load_checkpoint
from maml_ray.persistence.checkpoint_store import save_checkpoint
from maml_ray.persistence.storage import LocalStorage
from maml_ray.policies.context import CONTEXT
from maml_ray.policies.spec import PolicySpec, initial_parameters
from tests.learning_runs import Run, change, same, same_state
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)


def learned(settings: Settings, **more: object) -> Settings:
    return change(settings, "inner", learn_inner_rates=True, **more)


def rates_of(
    inner: InnerSettings, parameters: dict[str, Tensor], spec: PolicySpec
) -> dict[str, Tensor]:
    rates = inner_rates(inner, spec, parameters, torch.exp)
    return {name: rate for name, rate in rates.items() if isinstance(rate, Tensor)}


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("rate", [1e-4, 0.1, 3.0])
def test_rates_start_at_the_setting_one_for_each_number(rate: float, discrete: bool) -> None:
    spec = replace(SPEC, discrete=discrete)
    inner = InnerSettings(learning_rate=rate, learn_inner_rates=True)
    parameters = initial_meta_parameters(spec, inner, np.random.default_rng(0))
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    assert shapes == meta_parameter_shapes(spec, inner)
    assert list(shapes) == list(meta_parameter_shapes(spec, inner))
    rates = rates_of(inner, to_torch(parameters), spec)
    assert {name: tuple(value.shape) for name, value in rates.items()} == spec.shapes()
    for value in rates.values():
        torch.testing.assert_close(value, torch.full_like(value, rate), rtol=1e-6, atol=0)


def test_the_policys_own_parameters_do_not_depend_on_it() -> None:
    inner = InnerSettings(learn_inner_rates=True)
    with_rates = initial_meta_parameters(SPEC, inner, np.random.default_rng(0))
    plain = initial_parameters(SPEC, np.random.default_rng(0))
    assert same(policy_part(with_rates), plain)
    fixed = initial_meta_parameters(SPEC, InnerSettings(), np.random.default_rng(0))
    assert same(fixed, plain)
    rates = inner_rates(InnerSettings(learning_rate=0.3), SPEC, fixed, np.exp)
    assert rates == dict.fromkeys(SPEC.shapes(), 0.3)
    assert meta_parameter_shapes(SPEC, InnerSettings()) == SPEC.shapes()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_begins_with_what_its_seeds_own_stream_draws(seed: int) -> None:
    """Not with numbers that its tasks or episodes are drawn from, too."""
    settings = Settings(run=RunSettings(seed=seed), inner=InnerSettings(learn_inner_rates=True))
    stream = generator(seed, Purpose.PARAMETERS)
    expected = initial_meta_parameters(SPEC, settings.inner, stream)
    assert same(initial_learner_state(settings, SPEC).parameters, expected)
    assert same(MetaLearner(settings, SPEC).publish().values, expected)


def test_an_inner_step_moves_each_number_by_its_own_rate(small_settings: Settings) -> None:
    """``theta - exp(rho) * g``, elementwise; the rates come back as they were."""
    run = Run(learned(small_settings))
    rng = np.random.default_rng(1)
    theta = {
        name: value + 0.5 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in run.learner.publish().values.items()
    }
    support = run.collect()[0].support[0]
    fixed = change(run.settings, "inner", learn_inner_rates=False, learning_rate=1.0)
    once = adapt_policy(
        fixed.inner, fixed.advantages, run.learner.spec, policy_part(theta), support, None
    )
    adapted = adapt_policy(
        run.settings.inner, run.settings.advantages, run.learner.spec, theta, support, None
    )
    assert set(adapted) == set(theta)
    for name, value in policy_part(theta).items():
        slope = value - once[name]
        rate = np.exp(theta[LOG_RATE + name])
        assert float(np.abs(slope).max()) > 1e-3
        np.testing.assert_allclose(adapted[name], value - rate * slope, rtol=1e-4, atol=1e-5)
        assert np.array_equal(adapted[LOG_RATE + name], theta[LOG_RATE + name])


def test_equal_rates_are_the_one_rate(small_settings: Settings) -> None:
    """Before anything is learned the policy goes as it would without."""
    plain, rated = Run(small_settings), Run(learned(small_settings))
    for one, other in zip(plain.collect(), rated.collect(), strict=True):
        np.testing.assert_allclose(one.query.actions, other.query.actions, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("objective", ["ppo", "trpo", "reinforce"])
def test_rates_learn_and_stay_positive_however_large_the_update(
    small_settings: Settings, objective: str
) -> None:
    settings = learned(small_settings, steps=1)
    run = Run(change(settings, "outer", objective=objective, learning_rate=0.5, max_query_kl=None))
    for _ in range(3):
        run.learner.update(run.collect())
    rates = rates_of(run.settings.inner, run.learner.parameters, run.learner.spec)
    for name, value in rates.items():
        assert (value > 0).all(), name
        assert torch.isfinite(value).all(), name
    assert float((oracles.flat(rates).log() - math.log(0.1)).abs().max()) > 1e-3


KINDS: dict[str, dict[str, Any]] = {
    "learned rates": {"learn_inner_rates": True},
    "learned rates of the head": {"learn_inner_rates": True, "parameters": "head"},
    "context": {"parameters": "context", "learning_rate": 2.0},
    "learned rates of a context": {
        "learn_inner_rates": True,
        "parameters": "context",
        "learning_rate": 2.0,
    },
}
"""Settings with meta-parameters beside the policy's."""
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@kinds
def test_the_learners_adapted_policies_are_the_actors(
    small_settings: Settings, kind: dict[str, Any]
) -> None:
    settings = change(small_settings, "inner", **kind)
    settings = change(settings, "outer", learning_rate=0.02)
    run = Run(settings)
    for _ in range(4):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4
    published = to_torch(run.learner.publish().values)
    assert not same(published, to_torch(Run(settings).learner.publish().values))
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    for index, task in enumerate(meta_oracles.tasks_of(batch)):
        theta, normalizer = run.learner.publish().values, run.learner.publish().normalizer
        for number, support in enumerate(rollouts[index].support):
            theta = adapt_policy(
                settings.inner,
                settings.advantages,
                run.learner.spec,
                theta,
                support,
                normalizer,
                number,
            )
        expected, _ = meta_oracles.adapted(settings, run.learner.spec, published, task)
        found = policy_part(to_torch(theta))
        assert oracles.relative_error(found, expected) < 1e-5


@kinds
def test_they_are_published_saved_and_restored_to_the_bit(
    small_settings: Settings, tmp_path: Path, kind: dict[str, Any]
) -> None:
    run = Run(change(small_settings, "inner", **kind))
    run.learner.update(run.collect())
    state = run.learner.state()
    assert set(state.parameters) == set(meta_parameter_shapes(run.learner.spec, run.settings.inner))
    assert same(run.learner.publish().values, state.parameters)
    storage = LocalStorage(tmp_path)
    name = save_checkpoint(storage, Checkpoint(1, 1, 1.0, run.learner.spec, state), keep=1)
    restored = MetaLearner(run.settings, run.learner.spec)
    restored.load(load_checkpoint(storage, name).learner)
    assert same_state(restored.state(), state)
    assert list(restored.parameters) == list(run.learner.parameters)


@kinds
def test_a_state_without_them_is_refused_where_they_are_learned(
    small_settings: Settings, kind: dict[str, Any]
) -> None:
    plain, more = Run(small_settings), Run(change(small_settings, "inner", **kind))
    with pytest.raises(ValueError, match=r"log_inner_rate|context_weight"):
        more.learner.load(plain.learner.state())
    with pytest.raises(ValueError, match=r"log_inner_rate|context_weight"):
        plain.learner.load(more.learner.state())


@kinds
def test_an_agent_adapts_with_them(small_settings: Settings, kind: dict[str, Any]) -> None:
    settings = change(small_settings, "inner", **kind)
    run = Run(change(settings, "outer", learning_rate=0.1))
    run.learner.update(run.collect())
    published = run.learner.publish()
    agent = Agent(run.settings, run.learner.spec, dict(published.values), published.normalizer)
    support = agent.collect_support(episodes=2, seed=1)
    expected = adapt_policy(
        run.settings.inner,
        run.settings.advantages,
        run.learner.spec,
        published.values,
        support,
        published.normalizer,
    )
    assert same(agent.adapt(support).parameters, expected)


@pytest.mark.parametrize("learn_inner_rates", [False, True])
def test_an_agent_that_was_saved_goes_on_from_its_context(
    small_settings: Settings, tmp_path: Path, learn_inner_rates: bool
) -> None:
    settings = change(
        small_settings,
        "inner",
        parameters="context",
        learning_rate=5.0,
        learn_inner_rates=learn_inner_rates,
    )
    run = Run(settings)
    published = run.learner.publish()
    agent = Agent(run.settings, run.learner.spec, dict(published.values), published.normalizer)
    support = [agent.collect_support(episodes=2, seed=seed) for seed in (1, 2)]
    together = agent.adapt(support)
    once = agent.adapt(support[0])
    assert float(np.abs(once.parameters[CONTEXT]).max()) > 1e-3
    assert CONTEXT not in policy_part(once.parameters)
    once.save(tmp_path / "once")
    twice = load(tmp_path / "once").adapt(support[1])
    assert same(twice.parameters, together.parameters)
    forgetful = replace(once, parameters={name: once.parameters[name] for name in published.values})
    forgetful.save(tmp_path / "forgetful")
    with pytest.raises(RunDirError, match="parameter 'context' is missing"):
        load(tmp_path / "forgetful")
