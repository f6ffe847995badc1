"""Whole half-cheetah episodes in one call equal single steps, to the last bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import VectorWrapper
from scipy.stats import norm

from maml_ray.common.normalization import Normalizer
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import PolicySettings, TaskSettings
from maml_ray.envs.vector_env import Transition
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.tasks.half_cheetah import HalfCheetahBackwardVector, HalfCheetahDirectionVector
from maml_ray.tasks.loading import resolve_tasks
from tests.envs.comparison import assert_same_trajectories

FAMILIES = ("half-cheetah-backward", "half-cheetah-direction", "half-cheetah-velocity")
NO_POLICY: Any = None
"""A policy whose use would raise."""


class Stepped(VectorWrapper):
    """A batch that is stepped, since its ``rollout`` does nothing."""

    def rollout(self, *arguments: Any) -> None:
        return None


class Recorded:
    """A batch that records whether its ``rollout`` did anything."""

    def __init__(self, env: Any) -> None:
        self._env, self.rolled_out = env, list[bool]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def rollout(self, *arguments: Any) -> Any:
        outcome = self._env.rollout(*arguments)
        self.rolled_out.append(outcome is not None)
        return outcome


def policy_for(env: Any, scale: float, bounds: Any = None, *, shifted: bool = False) -> NumpyPolicy:
    settings = PolicySettings(action_scale=scale, hidden_sizes=(8,), action_bounds=bounds)
    spec = PolicySpec.from_spaces(settings, env.single_observation_space, env.single_action_space)
    parameters = initial_parameters(spec, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    normalizer = Normalizer(
        rng.standard_normal(17).astype(np.float32), rng.uniform(0.5, 2.0, 17).astype(np.float32)
    )
    shifts = rng.standard_normal((env.num_envs, 8)).astype(np.float32) if shifted else None
    return NumpyPolicy(spec, parameters, normalizer, shifts)


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize(
    ("scale", "bounds", "shifted"),
    [(1.0, "clip", False), (0.3, "none", True), (2.0, "rescale", False)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_equal_single_steps(
    family: str, scale: float, bounds: str, shifted: bool, explore: bool
) -> None:
    tasks = resolve_tasks(TaskSettings(name=family))
    task = tasks.sample(np.random.default_rng(3), 1)[0]
    one, other = (tasks.make_vector_env(task, num_envs=3, horizon=25) for _ in range(2))
    policy, recorded = policy_for(one, scale, bounds, shifted=shifted), Recorded(one)
    for horizon in (25, 23):
        seed = np.random.SeedSequence(horizon)
        mine = collect(policy, recorded, horizon, seed, explore=explore)  # type: ignore[arg-type]
        theirs = collect(policy, Stepped(other), horizon, seed, explore=explore)
        assert_same_trajectories(mine, theirs)
    assert recorded.rolled_out == [True, True]
    # The batch is where it would be: stepped on from here, both go the same way, to the time limit.
    ends = []
    for actions in np.random.default_rng(2).standard_normal((3, 3, 6)).astype(np.float32):
        outcome = one.step(actions)
        ends.append(bool(outcome[3].all()))
        for mine, theirs in zip(outcome[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert ends[:2] == [False, True]


@pytest.mark.parametrize("bounds", ["clip", "none"])
def test_gymnasiums_own_environment_charges_the_same_for_the_same_actions(bounds: str) -> None:
    env, plain = HalfCheetahDirectionVector(2), gym.make("HalfCheetah-v5", ctrl_cost_weight=0.05)
    policy, seed = policy_for(env, 1.0, bounds), np.random.SeedSequence(2)
    found = collect(policy, env, 20, seed)
    assert (np.abs(found.actions) > 1.0).mean() > 0.2
    plain.reset(seed=reset_seeds(seed, 2)[0])
    for action, reward in zip(found.actions[0], found.rewards[0], strict=True):
        given = np.clip(action, -1.0, 1.0) if bounds == "clip" else action
        _, expected, _, _, info = plain.step(given)
        assert info["reward_ctrl"] == pytest.approx(-0.05 * np.square(given).sum(), rel=1e-5)
        assert reward == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_an_untrained_finn2017_pays_31_an_episode() -> None:
    """In closed form: 0.05 a step for six actions of a clipped standard normal distribution."""
    squared = (1.0 - 2.0 * norm.sf(1.0) - 2.0 * norm.pdf(1.0)) + 2.0 * norm.sf(1.0)
    settings = load_settings(preset="finn2017")
    assert settings.policy.action_bounds == "rescale"
    assert 200 * 6 * 0.05 * squared == pytest.approx(31.0, abs=0.1)
    tasks = resolve_tasks(settings.task)
    env = tasks.make_vector_env(tasks.named_tasks()[0], num_envs=8, horizon=50)
    spec = PolicySpec.from_spaces(
        settings.policy, env.single_observation_space, env.single_action_space
    )
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    found = collect(policy, env, 50, np.random.SeedSequence(0))
    assert found.speeds is not None
    cost = 50 * found.speeds - found.returns  # the reward is the speed minus the cost
    assert 4 * cost.mean() == pytest.approx(200 * 6 * 0.05 * squared, rel=0.05)


class Tiring(HalfCheetahBackwardVector):
    """A family of somebody's own, whose reward is another."""

    def make_transition(self, run: Any, control: Any, infos: dict[str, Any]) -> Transition:
        return super().make_transition(run - 1.0, control, infos)


def test_a_family_with_rewards_of_its_own_is_stepped() -> None:
    own, plain = (kind(2, max_episode_steps=8) for kind in (Tiring, HalfCheetahBackwardVector))
    policy, seed = policy_for(plain, 1.0), np.random.SeedSequence(1)
    tired, fresh = (collect(policy, env, 8, seed) for env in (own, plain))
    np.testing.assert_allclose(tired.rewards, fresh.rewards - 1.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["ant-direction", "hopper-random-dynamics"])
def test_an_animal_that_can_fall_is_stepped(family: str) -> None:
    tasks = resolve_tasks(TaskSettings(name=family))
    env: Any = tasks.make_vector_env(
        tasks.sample(np.random.default_rng(0), 1)[0], num_envs=2, horizon=5
    )
    env.reset(seed=0)
    observations, actions = np.zeros((6, 2, 1), np.float32), np.zeros((5, 2, 6), np.float32)
    assert env.rollout(NO_POLICY, observations, actions) is None


@pytest.mark.parametrize("keywords", [{"torso_position": True}, {"max_episode_steps": 4}])
def test_a_rollout_that_is_not_supported_changes_nothing(keywords: dict[str, Any]) -> None:
    env = HalfCheetahBackwardVector(2, **keywords)
    env.reset(seed=0)
    before = env.positions.copy()
    observations, actions = np.zeros((6, 2, 17), np.float32), np.zeros((5, 2, 6), np.float32)
    assert env.rollout(NO_POLICY, observations, actions) is None
    np.testing.assert_array_equal(env.positions, before)
