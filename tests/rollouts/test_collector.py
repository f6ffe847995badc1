from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from maml_ray.maml.distributions import distribution, log_prob, to_torch
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardVector
from maml_ray.tasks.registry import env_id
from maml_ray.tasks.task import Task, TaskDistribution

BACKWARD_ID = env_id("HalfCheetahBackward")

Env = VectorEnv[Any, Any, Any]


class Countdown(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Ends by itself after 1 to 6 steps; the observation holds the steps left and the last action.

    The reward of step ``t`` is ``t + 1``.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 7))
        self.taken = 0
        return np.array([self.left, 0.0], np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "stepped behind the end"
        self.left -= 1
        self.taken += 1
        observation = np.array([self.left, action[0]], np.float32)
        return observation, float(self.taken), self.left == 0, False, {}


class CountdownTasks(TaskDistribution):
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return (Task("countdown"),) * count

    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(Countdown(), horizon)


def make_policy(observation_size: int, action_size: int, scale: float = 1.0) -> NumpyPolicy:
    spec = PolicySpec(observation_size, action_size, (8,), "tanh", -0.5, -3.0, action_scale=scale)
    parameters = initial_parameters(spec, np.random.default_rng(1))
    parameters["mean.weight"] = parameters["mean.weight"] * np.float32(50)
    return NumpyPolicy(spec, parameters)


def cheetahs(num_envs: int = 3) -> Env:
    return HalfCheetahBackwardVector(num_envs, autoreset_mode=AutoresetMode.DISABLED)


def seed() -> np.random.SeedSequence:
    return np.random.SeedSequence(5, spawn_key=(1, 2))


def naive(
    env: gym.Env[Any, Any], policy: NumpyPolicy, episodes: int, horizon: int, explore: bool
) -> list[list[tuple[NDArray[Any], NDArray[Any], float]]]:
    """One single environment, one episode after the other, one observation at a time."""
    reset_seed, noise_seed = seed().spawn(2)
    first_seeds = reset_seed.generate_state(episodes, np.uint32) >> 1
    shape = (horizon, episodes, policy.spec.action_size)
    noise = np.random.default_rng(noise_seed).standard_normal(shape, dtype=np.float32)
    result = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=int(first_seeds[episode]))
        steps = []
        for step in range(horizon):
            seen = np.asarray(observation, dtype=np.float32)
            action = policy.forward(seen)
            if explore:
                action = action + policy.std * noise[step, episode]
            given = action * np.float32(policy.spec.action_scale)
            observation, reward, terminated, truncated, _ = env.step(given)
            steps.append((seen, action, float(reward)))
            if terminated or truncated:
                break
        result.append(steps)
    return result


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("explore", [True, False])
def test_equals_a_loop_over_a_single_environment(explore: bool, scale: float) -> None:
    policy, env, single = make_policy(17, 6, scale), cheetahs(), gym.make(BACKWARD_ID)
    # A few steps: a cheetah in contact makes much of the last bit of its action.
    collected = collect(policy, env, 6, seed(), explore=explore)
    for episode, steps in enumerate(naive(single, policy, 3, 6, explore)):
        observations, actions, rewards = (np.array(part) for part in zip(*steps, strict=True))
        np.testing.assert_allclose(
            collected.observations[episode], observations, rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(collected.actions[episode], actions, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(collected.rewards[episode], rewards, rtol=1e-3, atol=1e-3)
    env.close()
    single.close()


def test_given_the_actions_the_rest_is_exactly_the_single_environments() -> None:
    policy, env, single = make_policy(17, 6), cheetahs(), gym.make(BACKWARD_ID)
    collected = collect(policy, env, 15, seed())
    for episode, reset_seed in enumerate(reset_seeds(seed(), 3)):
        observation, _ = single.reset(seed=reset_seed)
        for step in range(15):
            expected = observation.astype(np.float32)
            np.testing.assert_array_equal(collected.observations[episode, step], expected)
            observation, reward, *_ = single.step(collected.actions[episode, step])
            assert collected.rewards[episode, step] == np.float32(float(reward))
    env.close()
    single.close()


def test_shapes_and_dtypes() -> None:
    env = cheetahs()
    collected = collect(make_policy(17, 6), env, 5, seed())
    assert collected.observations.shape == (3, 5, 17)
    assert collected.actions.shape == (3, 5, 6)
    assert collected.mask.all()
    assert collected.episodes == 3
    assert collected.env_steps == 15
    for name in ("observations", "actions", "log_probs", "rewards", "mask"):
        assert getattr(collected, name).flags.c_contiguous
    env.close()


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_log_probs_are_those_that_torch_recomputes(scale: float) -> None:
    """Of the actions before they are scaled, which are what is recorded."""
    policy, env = make_policy(17, 6, scale), cheetahs()
    collected = collect(policy, env, 20, seed())
    spec = policy.spec
    parameters = initial_parameters(spec, np.random.default_rng(1))
    parameters["mean.weight"] = parameters["mean.weight"] * np.float32(50)
    gaussian = distribution(spec, to_torch(parameters), torch.from_numpy(collected.observations))
    recomputed = log_prob(gaussian, torch.from_numpy(collected.actions))
    np.testing.assert_allclose(collected.log_probs, recomputed.numpy(), atol=1e-4)
    env.close()


def assert_identical(first: Trajectories, second: Trajectories) -> None:
    for name in ("observations", "actions", "log_probs", "rewards", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_the_same_seed_gives_the_same_bits_whatever_came_before() -> None:
    policy, fresh, used = make_policy(17, 6), cheetahs(), cheetahs()
    collect(policy, used, 7, np.random.SeedSequence(99))
    first = collect(policy, fresh, 10, seed())
    assert_identical(first, collect(policy, used, 10, seed()))
    other = collect(policy, fresh, 10, np.random.SeedSequence(6))
    assert (other.actions != first.actions).all()
    fresh.close()
    used.close()


def test_seeds_of_environments_have_31_bits_of_which_all_are_used() -> None:
    seeds = reset_seeds(seed(), 1000)
    assert len(set(seeds)) == 1000
    assert 2**30 < max(seeds) < 2**31
    for drawn in seeds[:10]:
        np.random.RandomState(drawn)


def test_a_batch_that_takes_one_seed_gets_one() -> None:
    """As the interface of ``VectorEnv`` has it, and Gymnasium's vectorized CartPole wants it."""
    spec = PolicySpec(4, 2, (4,), "tanh", 0.0, -3.0, discrete=True)
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)), None)
    first, again, other = (
        collect(
            policy,
            gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"),
            5,
            np.random.SeedSequence(number),
        )
        for number in (0, 0, 1)
    )
    assert_identical(first, again)
    assert not np.array_equal(first.observations, other.observations)


def test_a_seed_may_be_used_again() -> None:
    policy, env, stream = make_policy(17, 6), cheetahs(), seed()
    first = collect(policy, env, 5, stream)
    assert_identical(first, collect(policy, env, 5, stream))
    env.close()


def test_global_random_state_is_neither_read_nor_written() -> None:
    policy, env = make_policy(17, 6), cheetahs()
    np.random.seed(0)  # noqa: NPY002
    first = collect(policy, env, 5, seed())
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert_identical(first, collect(policy, env, 5, seed()))
    env.close()


def test_without_exploration_the_mean_is_taken() -> None:
    policy, env = make_policy(17, 6), cheetahs()
    collected = collect(policy, env, 5, seed(), explore=False)
    for step in range(5):
        expected = policy.forward(np.ascontiguousarray(collected.observations[:, step]))
        np.testing.assert_array_equal(collected.actions[:, step], expected)
    env.close()


def check_countdown(env: Env, episodes: int, horizon: int) -> None:
    policy = make_policy(2, 1)
    collected = collect(policy, env, horizon, seed())
    expected = naive(Countdown(), policy, episodes, horizon, True)
    lengths = [len(steps) for steps in expected]
    assert len(set(lengths)) > 1  # or the test shows nothing
    for episode, steps in enumerate(expected):
        length = len(steps)
        assert collected.mask[episode].tolist() == [True] * length + [False] * (horizon - length)
        observations, actions, rewards = (np.array(part) for part in zip(*steps, strict=True))
        np.testing.assert_allclose(
            collected.observations[episode, :length], observations, atol=1e-5
        )
        np.testing.assert_allclose(collected.actions[episode, :length], actions, atol=1e-5)
        np.testing.assert_array_equal(collected.rewards[episode, :length], rewards)
        assert (collected.rewards[episode, length:] == 0).all()
        assert (collected.observations[episode, length:] == 0).all()
    assert collected.env_steps == sum(lengths)
    np.testing.assert_array_equal(collected.returns, [n * (n + 1) / 2 for n in lengths])


@pytest.mark.parametrize("horizon", [3, 10])
def test_what_lies_behind_an_early_end_is_masked(horizon: int) -> None:
    env = SyncVectorEnv([Countdown] * 8, autoreset_mode=AutoresetMode.NEXT_STEP)
    check_countdown(env, 8, horizon)
    check_countdown(env, 8, horizon)
    env.close()


@pytest.mark.parametrize("horizon", [3, 10])
def test_the_default_batch_of_a_users_task_may_end_early(horizon: int) -> None:
    tasks = CountdownTasks()
    env = tasks.make_vector_env(Task("countdown"), num_envs=8, horizon=horizon)
    check_countdown(env, 8, horizon)
    check_countdown(env, 8, horizon)
    env.close()
