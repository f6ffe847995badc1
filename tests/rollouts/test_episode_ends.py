"""How episodes end: by themselves or by the time limit, where, and how fast they went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardVector

SEED = np.random.SeedSequence(5, spawn_key=(1, 2))


class Walk(gym.Env[NDArray[np.float32], Any]):
    """Ends by itself after 1 to 9 steps; an action moves it, its speed is what it moved.

    The observation holds the place and the steps left.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, actions: gym.Space[Any], tells_speed: bool = True) -> None:
        self.action_space = actions
        self._tells_speed = tells_speed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 10))
        self.place = 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "stepped behind the end"
        assert self.action_space.contains(action), action
        moved = float(np.sum(action))
        self.left -= 1
        self.place += moved
        info = {"speed": moved} if self._tells_speed else {}
        return self._observation(), moved, self.left == 0, False, info

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self.place, self.left], np.float32)


CONTINUOUS = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
CHOICES = gym.spaces.Discrete(3, start=-1)
HORIZON = 6


def make_env(actions: gym.Space[Any], tells_speed: bool = True) -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(Walk(actions, tells_speed), HORIZON)


def make_policy(discrete: bool, scale: float = 1.0) -> NumpyPolicy:
    spec = PolicySpec(2, 3 if discrete else 2, (8,), "tanh", -0.5, -3.0, action_scale=scale)
    spec = replace(spec, discrete=discrete, first_action=-1 if discrete else 0)
    parameters = initial_parameters(spec, np.random.default_rng(1))
    return NumpyPolicy(spec, parameters)


def collected(env: VectorEnv[Any, Any, Any], policy: NumpyPolicy) -> Trajectories:
    return collect(policy, env, HORIZON, SEED)


def replay(
    make: Callable[[], gym.Env[Any, Any]], data: Trajectories, as_given: Callable[[Any], Any]
) -> tuple[NDArray[np.float32], list[bool], list[float]]:
    """Each episode once more in an environment alone, with the recorded actions."""
    finals, terminations, speeds = [], [], []
    for episode, seed in enumerate(reset_seeds(SEED, data.episodes)):
        env, moved = make(), []
        observation, _ = env.reset(seed=seed)
        for step in range(HORIZON):
            np.testing.assert_array_equal(data.observations[episode, step], observation)
            action = as_given(data.actions[episode, step])
            observation, reward, terminated, truncated, info = env.step(action)
            assert data.rewards[episode, step] == np.float32(float(reward))
            assert data.mask[episode, step]
            moved.append(info.get("speed", 0.0))
            if terminated or truncated:
                break
        assert not data.mask[episode, step + 1 :].any()
        finals.append(observation)
        terminations.append(terminated)
        speeds.append(float(np.mean(moved)))
    return np.array(finals), terminations, speeds


CASES = {
    "continuous": (CONTINUOUS, False, 1.0, lambda action: action),
    "scaled": (CONTINUOUS, False, 2.5, lambda action: action * np.float32(2.5)),
    "discrete": (CHOICES, True, 1.0, lambda action: int(action[0]) - 1),
}


@pytest.mark.parametrize("case", CASES)
def test_ends_are_those_of_a_loop_over_a_single_environment(case: str) -> None:
    actions, discrete, scale, as_given = CASES[case]
    make = partial(make_env, actions)
    env = SyncVectorEnv([make] * 30, autoreset_mode=AutoresetMode.NEXT_STEP)
    for _ in range(2):
        data = collected(env, make_policy(discrete, scale))
        finals, terminations, speeds = replay(make, data, as_given)
        assert len(set(data.mask.sum(axis=1))) > 3  # or the test shows nothing
        assert len(set(terminations)) == 2
        assert data.final_observations is not None
        assert data.terminated is not None
        assert data.speeds is not None
        assert data.final_observations.dtype == data.speeds.dtype == np.float32
        assert data.terminated.dtype == np.bool_
        np.testing.assert_array_equal(data.final_observations, finals)
        assert data.terminated.tolist() == terminations
        np.testing.assert_allclose(data.speeds, speeds, rtol=1e-5, atol=1e-6)
    env.close()


def test_an_end_in_the_very_last_step_is_an_end() -> None:
    """Gymnasium's time limit says truncated there, too."""
    env = SyncVectorEnv([partial(make_env, CONTINUOUS)] * 40)
    data = collected(env, make_policy(False))
    lefts = data.observations[:, 0, 1]
    assert (lefts == HORIZON).any()
    assert data.terminated is not None
    assert data.terminated.tolist() == (lefts <= HORIZON).tolist()
    env.close()


def test_an_environment_that_tells_no_speed_has_none() -> None:
    env = SyncVectorEnv([partial(make_env, CONTINUOUS, False)] * 3)
    assert collected(env, make_policy(False)).speeds is None
    env.close()


def test_a_collection_shorter_than_the_episodes_cuts_them_off() -> None:
    """The environment itself need not know the horizon."""
    env = HalfCheetahBackwardVector(3, autoreset_mode=AutoresetMode.DISABLED)
    spec = PolicySpec(17, 6, (8,), "tanh", -0.5, -3.0)
    parameters = initial_parameters(spec, np.random.default_rng(1))
    short, longer = (collect(NumpyPolicy(spec, parameters), env, n, SEED) for n in (4, 5))
    assert short.final_observations is not None
    assert short.terminated is not None
    assert short.speeds is not None
    assert longer.speeds is not None
    np.testing.assert_array_equal(short.final_observations, longer.observations[:, 4])
    assert not short.terminated.any()
    assert (short.speeds != longer.speeds).all()
    env.close()


def test_unscaled_actions_are_recorded_and_scaled_ones_taken() -> None:
    """The same noise; the environment's reward is the sum of the action that it was given."""
    env = SyncVectorEnv([partial(make_env, CONTINUOUS)] * 4)
    data = collected(env, make_policy(False, 2.5))
    plain = collected(env, make_policy(False))
    np.testing.assert_array_equal(data.actions[:, 0], plain.actions[:, 0])
    np.testing.assert_array_equal(data.log_probs, plain.log_probs)
    given = (data.actions * np.float32(2.5)).sum(axis=2)
    np.testing.assert_allclose(data.rewards[data.mask], given[data.mask], rtol=1e-5, atol=1e-6)
    env.close()
