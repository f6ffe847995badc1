from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from maml_ray.tasks.families.half_cheetah import (
    NOTEBOOK_CONTROL_COST,
    HalfCheetahBackward,
    HalfCheetahBackwardTasks,
)
from maml_ray.tasks.registry import env_id

BACKWARD_ID = env_id("HalfCheetahBackward")


@pytest.fixture
def env() -> Any:
    env = HalfCheetahBackward()
    yield env
    env.close()


def random_actions(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Some of them far outside the action space."""
    return (1.5 * np.random.default_rng(0).standard_normal((count, 6))).astype(np.float32)


def can_render() -> bool:
    env = HalfCheetahBackward(render_mode="rgb_array")
    try:
        env.reset(seed=0)
        return env.render() is not None
    except Exception:
        return False
    finally:
        env.close()


def test_gymnasium_finds_nothing_to_warn_of() -> None:
    env = gym.make(BACKWARD_ID, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=not can_render())
    env.close()


def test_a_frame_can_be_rendered() -> None:
    if not can_render():
        pytest.skip("no off-screen rendering here")
    env = gym.make(BACKWARD_ID, render_mode="rgb_array")
    env.reset(seed=0)
    frame = np.asarray(env.render())
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 0
    env.close()


def test_reward_is_half_cheetahs_with_the_speed_turned_round(env: HalfCheetahBackward) -> None:
    plain = gym.make("HalfCheetah-v5").unwrapped
    observation, info = env.reset(seed=5)
    plain_observation, plain_info = plain.reset(seed=5)
    np.testing.assert_array_equal(observation, plain_observation)
    assert info == plain_info
    for action in random_actions(50):
        observation, reward, terminated, truncated, info = env.step(action)
        plain_observation, _, *plain_flags, plain_info = plain.step(action)
        np.testing.assert_array_equal(observation, plain_observation)
        notebook = -plain_info["reward_forward"] + 0.05 * plain_info["reward_ctrl"]
        assert reward == pytest.approx(notebook, abs=1e-7)  # float32, as the action
        assert [terminated, truncated] == plain_flags
        assert info["x_velocity"] == plain_info["x_velocity"]
        assert info["x_position"] == plain_info["x_position"]
    plain.close()


def test_reward_formula_by_hand(env: HalfCheetahBackward) -> None:
    env.reset(seed=5)
    for action in random_actions(20):
        before = env.data.qpos[0]
        _, reward, _, _, info = env.step(action)
        speed = (env.data.qpos[0] - before) / 0.05
        squares = float(np.sum(action.astype(np.float64) ** 2))
        assert reward == pytest.approx(-speed - NOTEBOOK_CONTROL_COST * squares, rel=1e-5)
        assert info["reward_run"] + info["reward_control"] == reward
        assert info["speed"] == -info["x_velocity"]
        assert set(info) == {"x_position", "x_velocity", "reward_run", "reward_control", "speed"}


def test_the_same_seed_gives_the_same_episode(env: HalfCheetahBackward) -> None:
    def episode(seed: int) -> np.ndarray[Any, Any]:
        rows = [env.reset(seed=seed)[0]]
        rows += [env.step(action)[0] for action in random_actions(20)]
        return np.array(rows)

    first = episode(1)
    np.testing.assert_array_equal(first, episode(1))
    assert (first[0] != episode(2)[0]).any()


def test_pickling_keeps_the_arguments() -> None:
    env = HalfCheetahBackward(forward_reward_weight=2.0, frame_skip=3)
    copy = pickle.loads(pickle.dumps(env))
    assert isinstance(copy, HalfCheetahBackward)
    assert copy.frame_skip == 3
    np.testing.assert_array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])
    for action in random_actions(5):
        copied, original = copy.step(action), env.step(action)
        np.testing.assert_array_equal(copied[0], original[0])
        assert copied[1:] == original[1:]
    env.close()
    copy.close()


def test_the_registered_environment_is_truncated_after_200_steps() -> None:
    env = gym.make(BACKWARD_ID)
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]
    env.close()


def test_tasks_are_the_one_task() -> None:
    tasks = HalfCheetahBackwardTasks()
    assert [task.name for task in tasks.sample(np.random.default_rng(0), 3)] == ["backward"] * 3


def test_the_task_makes_environments_of_the_horizon_asked_for() -> None:
    tasks = HalfCheetahBackwardTasks()
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    env = tasks.make_env(task, horizon=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(6, np.float32))[3] for _ in range(3)] == [False, False, True]
    env.close()
    batch = tasks.make_vector_env(task, num_envs=2, horizon=3)
    batch.reset(seed=0)
    truncations = [batch.step(np.zeros((2, 6), np.float32))[3].tolist() for _ in range(3)]
    assert truncations == [[False] * 2, [False] * 2, [True] * 2]
    batch.close()


def test_stable_baselines3_takes_it(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(HalfCheetahBackward(), skip_render_check=True)
    env = gym.make(BACKWARD_ID)
    model = sb3.PPO("MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(total_timesteps=256)
    assert model.num_timesteps == 256
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))
    env.close()


def test_the_camera_follows_and_the_floor_does_not_end() -> None:
    env = HalfCheetahBackward(render_mode="rgb_array")
    env.reset(seed=0)
    pictures = []
    for x in (0.0, -96.0):  # a whole number of chequers apart
        env.data.qpos[0] = x
        mujoco.mj_forward(env.model, env.data)
        try:
            pictures.append(np.asarray(env.render(), dtype=np.float64))
        except Exception as error:
            pytest.skip(f"this machine cannot render: {error}")
    env.close()
    start, far = pictures
    assert start.std() > 20
    assert np.abs(start - far).mean() < 0.1 * start.std()
