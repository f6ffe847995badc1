"""Batches in every autoreset mode against a loop over single environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.config.sections import AdvantageSettings
from maml_ray.envs.vector_env import BatchEnv, Transition
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.advantages import RIDGE, compute_advantages
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.rollouts.trajectories import Trajectories

SEED = np.random.SeedSequence(3)
HORIZON, EPISODES, LIMIT = 9, 6, 7
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Line(gym.Env[NDArray[np.float32], Any]):
    """A point on a line, which ends beyond a place and is cut off by a limit, or neither.

    It complains about a step after an end. Its infos say something of the last step alone, and
    something of every other step.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    early = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.x, self.t, self.over = float(self.np_random.normal()), 0, False
        return self._observe(), {"where": 99.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "stepped after the end"
        self.x += 0.5 * float(np.sum(action, dtype=np.float64))
        self.t += 1
        terminated = self.early and self.x > 0.8
        truncated = self.early and self.t >= LIMIT
        self.over = terminated or truncated
        info: dict[str, Any] = {"speed": self.x, "where": self.x}
        if self.over:
            info["length"] = self.t
        if self.t % 2:
            info["odd"] = True
        return self._observe(), -abs(self.x - 1.0), terminated, truncated, info

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self.x, self.t], np.float32)


class LineBatch(BatchEnv):
    """The same as a batch of ours."""

    early = True

    def __init__(self, num_envs: int, mode: AutoresetMode) -> None:
        super().__init__(Line(), num_envs, autoreset_mode=mode)
        self.x, self.t = np.zeros(num_envs), np.zeros(num_envs, np.int64)

    def reset_one(self, i: int) -> None:
        self.x[i], self.t[i] = float(self.rngs[i].normal()), 0

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        for i in indices:
            self.x[i] += 0.5 * float(np.sum(actions[i], dtype=np.float64))
            self.t[i] += 1

    def observe(self) -> NDArray[np.float64]:
        return np.stack([self.x, self.t], axis=1)

    def assess(self, actions: NDArray[Any]) -> Transition:
        self._max_episode_steps = LIMIT if self.early else None
        infos = {"speed": self.x.copy(), "where": self.x.copy()}
        return Transition(-np.abs(self.x - 1.0), self.early & (self.x > 0.8), infos)


def make_batch(kind: str, mode: AutoresetMode) -> VectorEnv[Any, Any, Any]:
    if kind == "own":
        return LineBatch(EPISODES, mode)
    batch: Callable[..., Any] = AsyncVectorEnv if kind == "async" else SyncVectorEnv
    # Without copies: the observations of all steps lie in the same memory.
    return batch([Line] * EPISODES, autoreset_mode=mode, copy=False)  # type: ignore[no-any-return]


def make_policy() -> NumpyPolicy:
    spec = PolicySpec(2, 2, (8,), "tanh", -0.5, -3.0)
    return NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(1)))


def replay(data: Trajectories, early: bool) -> dict[str, NDArray[np.float32]]:
    """Check each episode against an environment alone; return the means of its infos."""
    means: dict[str, list[float]] = {"speed": [], "where": [], "length": [], "odd": []}
    assert data.final_observations is not None
    assert data.terminated is not None
    for episode, seed in enumerate(reset_seeds(SEED, data.episodes)):
        env, infos = Line(), list[dict[str, Any]]()
        env.early = early
        observation, _ = env.reset(seed=seed)
        for step in range(HORIZON):
            assert data.mask[episode, step]
            np.testing.assert_array_equal(data.observations[episode, step], observation)
            observation, reward, terminated, truncated, info = env.step(data.actions[episode, step])
            infos.append(info)
            assert data.rewards[episode, step] == np.float32(reward)
            if terminated or truncated:
                break
        assert not data.mask[episode, step + 1 :].any()
        np.testing.assert_array_equal(data.final_observations[episode], observation)
        assert data.terminated[episode] == terminated
        for name, each in means.items():
            values = [float(info[name]) for info in infos if name in info]
            each.append(float(np.mean(values)) if values else np.nan)
    return {name: np.array(each, np.float32) for name, each in means.items()}


def textbook_advantages(data: Trajectories, discount: float, lam: float) -> NDArray[np.float64]:
    """Advantages with values after a time limit, by loops over steps.

    Weights solve sum_t x_t (x_t - discount^(L - t) x_L)' w = sum_t x_t y_t, where x_L, after the
    last step, counts only if the episode was cut off.
    """
    assert data.final_observations is not None
    assert data.terminated is not None

    def features(state: NDArray[np.floating]) -> NDArray[np.float64]:
        s = np.clip(state.astype(np.float64), -10.0, 10.0)
        return np.array([*s, *(s * s), 1.0])

    lengths, size = data.mask.sum(axis=1), len(features(data.observations[0, 0]))
    left, right = RIDGE * np.eye(size), np.zeros(size)
    for k, length in enumerate(lengths):
        last = 0.0 if data.terminated[k] else 1.0
        end = last * features(data.final_observations[k])
        sum_of_rewards = 0.0
        for t in reversed(range(length)):
            sum_of_rewards = float(data.rewards[k, t]) + discount * sum_of_rewards
            x = features(data.observations[k, t])
            left += np.outer(x, x - discount ** (length - t) * end)
            right += x * sum_of_rewards
    weights = np.linalg.solve(left, right)
    advantages = np.zeros(data.mask.shape)
    for k, length in enumerate(lengths):
        last = 0.0 if data.terminated[k] else 1.0
        value, advantage = last * float(features(data.final_observations[k]) @ weights), 0.0
        for t in reversed(range(length)):
            before = float(features(data.observations[k, t]) @ weights)
            delta = float(data.rewards[k, t]) + discount * value - before
            value, advantage = before, delta + discount * lam * advantage
            advantages[k, t] = advantage
    return advantages


@pytest.mark.parametrize("kind", ["sync", "async", "own"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_what_single_environments_give(kind: str, mode: AutoresetMode) -> None:
    if kind == "own" and mode is AutoresetMode.SAME_STEP:
        with pytest.raises(ValueError, match="must be NEXT_STEP or DISABLED"):
            make_batch(kind, mode)
        return
    env, names = make_batch(kind, mode), ("where", "length", "odd")
    settings = AdvantageSettings(bootstrap_time_limit=True, normalize=False)
    for early in (True, False, True):  # again, after whatever the batch remembers
        if kind == "own":
            env.early = early  # type: ignore[attr-defined]
        else:
            env.set_attr("early", early)  # type: ignore[attr-defined]
        data = collect(make_policy(), env, HORIZON, SEED, info_metrics=names)
        means = replay(data, early)
        lengths = data.mask.sum(axis=1).tolist()
        assert data.terminated is not None
        ends = set(data.terminated.tolist())
        assert ends == ({True, False} if early else {False}), "or the test shows nothing"
        assert (len(set(lengths)) > 2) is early
        for name, values in data.info_means.items():
            np.testing.assert_allclose(values, means[name], rtol=1e-5, err_msg=name)
        reported = {"speed", "where"}
        if kind != "own":
            reported |= {"odd", "length"} if early else {"odd"}
        assert set(data.info_means) == reported
        expected = textbook_advantages(data, settings.discount, settings.gae_lambda)
        np.testing.assert_allclose(compute_advantages(data, settings), expected, atol=1e-3)
    env.close()


class Silent(gym.vector.VectorWrapper):
    """Does not give the last observations of what it has reset."""

    changed: Mapping[str, Any] = MappingProxyType({})

    def step(self, actions: Any) -> Any:
        *rest, infos = super().step(actions)
        return (
            *rest,
            {key: infos[key] for key in infos if "final" not in key} | dict(self.changed),
        )


def test_without_the_last_observations_same_step_is_refused() -> None:
    env = Silent(make_batch("sync", AutoresetMode.SAME_STEP))
    with pytest.raises(UserError, match=r"infos\['final_obs'\].*NEXT_STEP or DISABLED"):
        collect(make_policy(), env, HORIZON, SEED)
    env.close()


@pytest.mark.parametrize("key", ["final_obs", "final_observation"])
def test_the_last_observations_may_be_one_array_without_a_mask(key: str) -> None:
    """As Isaac Lab gives them; the other name is that of Gymnasium before version 1.1."""
    env = Silent(make_batch("sync", AutoresetMode.SAME_STEP))
    env.changed = {key: np.full((EPISODES, 2), 7.0, np.float32)}
    data = collect(make_policy(), env, HORIZON, SEED)
    np.testing.assert_array_equal(data.final_observations, 7.0)
    env.close()


def test_a_batch_that_names_no_mode_may_give_last_observations() -> None:
    env = make_batch("sync", AutoresetMode.SAME_STEP)
    env.metadata = {}
    replay(collect(make_policy(), env, HORIZON, SEED), True)
    env.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_an_info_of_that_name_means_nothing_in_other_modes(mode: AutoresetMode) -> None:
    env = Silent(make_batch("sync", mode))
    env.changed = {"final_obs": np.full((EPISODES, 2), 7.0, np.float32)}
    replay(collect(make_policy(), env, HORIZON, SEED), True)
    env.close()
