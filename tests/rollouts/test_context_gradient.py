"""Support episodes that try other contexts, and the gradient that their returns give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.config.loading import load_settings
from maml_ray.config.sections import InnerSettings, PolicySettings
from maml_ray.maml.distributions import Parameters, to_torch
from maml_ray.maml.meta_parameters import initial_meta_parameters
from maml_ray.policies.context import context_offsets, with_context
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.collector import collect, collect_support
from maml_ray.rollouts.samples import context_gradient
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardVector
from tests.config.test_choices import Poles
from tests.envs.comparison import assert_same_trajectories
from tests.envs.test_rollout import Recorded, Stepped
from tests.learning.test_broken_numbers import Spoilt
from tests.oracles import meta as meta_oracles

SEED = np.random.SeedSequence(5, spawn_key=(1, 2))
SIZES = [(episodes, size) for episodes in (2, 3, 5, 8) for size in (1, 2, 4)]

MOVED = {
    2: [1, -1],
    3: [1, -1, 0],
    5: [1, -1, 2, -2, 0],
    8: [1, -1, 2, -2, 3, -3, 4, -4],
}
"""Which number of a context of 4, from 1, each episode raises or lowers; others start again."""


@pytest.mark.parametrize(("episodes", "size"), SIZES)
def test_episodes_move_one_number_each_in_pairs(episodes: int, size: int) -> None:
    expected = np.zeros((episodes, size))
    for episode, moved in enumerate(MOVED[episodes]):
        if moved:
            expected[episode, (abs(moved) - 1) % size] = 2.0 if moved > 0 else -2.0
    found = context_offsets(episodes, size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("episodes", [0, 1])
def test_fewer_than_two_episodes_are_no_pair(episodes: int) -> None:
    with pytest.raises(UserError, match=rf"{episodes} support episode .* at least 2"):
        context_offsets(episodes, 1)


def with_returns(returns: NDArray[np.float64], offsets: NDArray[np.float32]) -> Trajectories:
    """Episodes of 6 steps, some of which end early; rewards behind an end are to be ignored."""
    episodes = len(returns)
    lengths = 2 + np.arange(episodes) % 5
    mask = np.arange(6) < lengths[:, None]
    rewards = np.where(mask, (returns / lengths)[:, None], 1e6).astype(np.float32)
    return Trajectories(
        observations=np.zeros((episodes, 6, 1), np.float32),
        actions=np.zeros((episodes, 6, 1), np.float32),
        log_probs=np.zeros((episodes, 6), np.float32),
        rewards=rewards,
        mask=mask,
        context_offsets=offsets,
    )


@pytest.mark.parametrize("curvature", [0.0, 1.0])
@pytest.mark.parametrize(("episodes", "size"), SIZES)
def test_of_a_quadratic_return_the_gradient_is_exact(
    episodes: int, size: int, curvature: float
) -> None:
    """Of R(z) = a + b.z + z.A z / 2, b per step at z = 0; 0 for numbers that nobody moved."""
    rng = np.random.default_rng(episodes)
    slope, matrix = rng.standard_normal(size), curvature * rng.standard_normal((size, size))
    offsets = context_offsets(episodes, size)
    returns = np.array([7.0 + slope @ z + z @ matrix @ z / 2 for z in offsets])
    tried = np.arange(size) < episodes // 2
    found = context_gradient(with_returns(returns, offsets))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(tried, slope / 6, 0.0), rtol=1e-5, atol=1e-6)


def test_episodes_that_moved_nothing_give_no_gradient() -> None:
    returns = np.arange(4.0)
    unmoved = context_gradient(with_returns(returns, np.zeros((4, 2), np.float32)))
    np.testing.assert_array_equal(unmoved, [0.0, 0.0])
    without = with_returns(returns, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no context_offsets"):
        context_gradient(without)


def test_the_ends_of_velocity_3_adapt_to_what_support_episodes_act_with() -> None:
    """If a pair runs at the lowest and the highest target speed, as the policy sees contexts."""
    settings = load_settings(preset="velocity-3")
    slowest, fastest = settings.task.options["speed_range"]
    offsets = context_offsets(settings.meta_batch.episodes, 1)
    speeds = np.where(offsets[:, 0] > 0, fastest, slowest)
    for target, offset in ((slowest, offsets.min()), (fastest, offsets.max())):
        gradient = context_gradient(with_returns(-6 * np.abs(speeds - target), offsets))
        adapted = settings.inner.learning_rate * gradient
        np.testing.assert_allclose(np.tanh(adapted), [np.tanh(offset)], atol=0.02)


CONTEXT = InnerSettings(parameters="context", context_size=2)
NORMALIZER = Normalizer(np.full(17, 0.1, np.float32), np.full(17, 0.8, np.float32))


def meta_parameters(spec: PolicySpec) -> NumpyParameters:
    """Meta-parameters after an inner step, whose policy acts on what it sees."""
    parameters = initial_meta_parameters(spec, CONTEXT, np.random.default_rng(1))
    head = f"{spec.head}.weight"
    parameters[head] = parameters[head] * np.float32(50)
    return with_context(spec, parameters, np.array([0.3, -0.2], np.float32))


def assert_acted_with(
    found: Trajectories, spec: PolicySpec, parameters: NumpyParameters, seen: NDArray[Any]
) -> None:
    """Each episode's log-probabilities are those of a policy with its own context, in float64."""
    weight = parameters["context_weight"].astype(np.float64)
    for k, offset in enumerate(context_offsets(found.episodes, 2)):
        theta: Parameters = {n: v.double() for n, v in to_torch(parameters).items()}
        contexts = np.tanh(offset) - np.tanh(parameters["context"])
        theta["hidden_0.bias"] = theta["hidden_0.bias"] + torch.from_numpy(weight @ contexts)
        policy = meta_oracles.action_distribution(spec, theta, torch.from_numpy(seen[k]).double())
        actions = torch.from_numpy(found.actions[k]).double()
        expected = policy.log_prob(actions[:, 0] if spec.discrete else actions).numpy()
        taken = found.mask[k]
        np.testing.assert_allclose(found.log_probs[k][taken], expected[taken], atol=1e-3)


@pytest.mark.parametrize("episodes", [2, 3, 4])
def test_support_episodes_are_those_of_policies_with_contexts_of_their_own(episodes: int) -> None:
    """In one call of a compiled rollout, to the bit of single steps."""
    env = HalfCheetahBackwardVector(episodes, max_episode_steps=6)
    spec, recorded = PolicySpec(17, 6, (8,), "tanh", -0.5, -3.0), Recorded(env)
    parameters = meta_parameters(spec)
    batches: list[Any] = [recorded, Stepped(env)]
    found, stepped = (
        collect_support(CONTEXT, spec, parameters, NORMALIZER, batch, 6, SEED) for batch in batches
    )
    assert recorded.rolled_out == [True]
    assert_same_trajectories(found, stepped)
    offsets = context_offsets(episodes, 2)
    np.testing.assert_array_equal(found.context_offsets, offsets)
    assert_acted_with(found, spec, parameters, NORMALIZER(found.observations))
    for k, offset in enumerate(offsets):
        policy = NumpyPolicy(spec, with_context(spec, parameters, offset), NORMALIZER)
        alone = collect(policy, env, 6, SEED)
        for name in ("observations", "actions", "log_probs", "rewards"):
            mine, theirs = getattr(found, name)[k], getattr(alone, name)[k]
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3, err_msg=name)
    assert np.abs(found.actions - collect(policy, env, 6, SEED).actions)[0].max() > 0.1
    env.close()


def test_discrete_actions_are_chosen_with_contexts_too_and_drawn_again_with_the_same() -> None:
    """An episode that failed is collected again with the context of its row."""

    def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
        if attempt == 0 and step == 2:
            outcome[1][1:3] = np.nan

    tasks = Poles()
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    env = tasks.make_vector_env(task, num_envs=5, horizon=8)
    spec = PolicySpec.from_spaces(
        PolicySettings(hidden_sizes=(8,)), env.single_observation_space, env.single_action_space
    )
    parameters, spoilt = meta_parameters(spec), Spoilt(env, spoil)
    found = collect_support(CONTEXT, spec, parameters, None, spoilt, 8, SEED)  # type: ignore[arg-type]
    assert found.discarded == 2
    np.testing.assert_array_equal(found.context_offsets, context_offsets(5, 2))
    assert_acted_with(found, spec, parameters, found.observations)
    env.close()


def test_without_a_context_support_episodes_are_those_of_the_policy() -> None:
    spec, env = PolicySpec(17, 6, (8,), "tanh", -0.5, -3.0), HalfCheetahBackwardVector(2)
    parameters = meta_parameters(spec)
    policy, inner = NumpyPolicy(spec, parameters, NORMALIZER), InnerSettings()
    found = collect_support(inner, spec, parameters, NORMALIZER, env, 5, SEED)
    assert_same_trajectories(found, collect(policy, env, 5, SEED))
    env.close()
