"""The batched simulation against Gymnasium's own, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardVector
from maml_ray.tasks.registry import env_id
from tests.envs.comparison import assert_same_reset, assert_same_step

BACKWARD_ID = env_id("HalfCheetahBackward")

Env = Any  # a VectorEnv; Gymnasium's own annotation of reset knows no lists of seeds
Actions = np.ndarray[Any, Any]


def reference(num_envs: int, max_episode_steps: int, mode: AutoresetMode) -> Env:
    def make() -> gym.Env[Any, Any]:
        return gym.make(BACKWARD_ID, max_episode_steps=max_episode_steps)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)


def pair(num_envs: int, max_episode_steps: int, mode: AutoresetMode) -> tuple[Env, Env]:
    batched = HalfCheetahBackwardVector(
        num_envs, max_episode_steps=max_episode_steps, autoreset_mode=mode
    )
    return batched, reference(num_envs, max_episode_steps, mode)


def noise(steps: int, num_envs: int, scale: float = 1.5) -> Actions:
    """Actions of which many lie outside [-1, 1], so that the cheetah tumbles."""
    drawn = np.random.default_rng(1).standard_normal((steps, num_envs, 6))
    return (scale * drawn).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_episodes_equal_single_environments(dtype: type) -> None:
    batched, single = pair(3, 200, AutoresetMode.NEXT_STEP)
    assert_same_reset(batched.reset(seed=7), single.reset(seed=7))
    for actions in noise(200, 3).astype(dtype):
        expected = single.step(actions)
        assert_same_step(batched.step(actions), expected)
    assert expected[3].all()
    batched.close()
    single.close()


def test_the_whole_episode_test_meets_contacts() -> None:
    env = HalfCheetahBackwardVector(1)
    env.reset(seed=7)
    contacts = 0
    for actions in noise(200, 1):
        env.step(actions)
        contacts += env.simulations.data[0].ncon
    assert contacts > 50
    env.close()


def test_equals_gymnasiums_own_make_vec() -> None:
    batched = gym.make_vec(BACKWARD_ID, num_envs=3)
    single = gym.make_vec(BACKWARD_ID, num_envs=3, vectorization_mode="sync")
    assert isinstance(batched, HalfCheetahBackwardVector)
    assert isinstance(single, SyncVectorEnv)
    assert batched.observation_space == single.observation_space
    assert batched.action_space == single.action_space
    assert_same_reset(batched.reset(seed=0), single.reset(seed=0))
    for actions in noise(205, 3, scale=0.5):  # 200 is the registered episode: across its end
        assert_same_step(batched.step(actions), single.step(actions))
    batched.close()
    single.close()


def test_make_vec_gives_the_right_metadata() -> None:
    env = gym.make_vec(BACKWARD_ID, num_envs=3)
    single = gym.make_vec(BACKWARD_ID, num_envs=3, vectorization_mode="sync")
    assert env.num_envs == 3
    assert env.metadata == single.metadata
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.single_observation_space.shape == (17,)
    assert env.single_action_space == single.single_action_space
    assert env.spec is not None
    assert env.spec.id == BACKWARD_ID
    env.close()
    single.close()


def test_next_step_autoreset_with_environments_out_of_step() -> None:
    batched, single = pair(3, 10, AutoresetMode.NEXT_STEP)
    seeds: list[int | None] = [4, 5, 6]
    assert_same_reset(batched.reset(seed=seeds), single.reset(seed=list(seeds)))
    for step, actions in enumerate(noise(40, 3)):
        if step in (3, 14):  # reset only the middle one, so that episodes end at different steps
            mask = np.array([False, True, False])
            actual = batched.reset(seed=[0, step, 0], options={"reset_mask": mask})
            expected = single.reset(seed=[0, step, 0], options={"reset_mask": mask})
            assert_same_reset(actual, expected)
        assert_same_step(batched.step(actions), single.step(actions))
    batched.close()
    single.close()


def test_disabled_autoreset_and_masked_resets() -> None:
    batched, single = pair(3, 6, AutoresetMode.DISABLED)
    assert_same_reset(batched.reset(seed=1), single.reset(seed=1))
    mask = np.array([True, False, True])
    for step, actions in enumerate(noise(24, 3)):
        expected = single.step(actions)
        assert_same_step(batched.step(actions), expected)
        if step == 2:
            done = mask
        else:
            done = expected[2] | expected[3]
        if done.any():
            actual = batched.reset(options={"reset_mask": done.copy()})
            assert_same_reset(actual, single.reset(options={"reset_mask": done.copy()}))
    batched.close()
    single.close()


def test_observations_returned_are_not_overwritten_by_later_steps() -> None:
    env = HalfCheetahBackwardVector(2)
    first, infos = env.reset(seed=0)
    kept, position = first.copy(), infos["x_position"].copy()
    second = env.step(np.ones((2, 6), np.float32))
    saved = [value.copy() for value in second[:4]]
    env.step(-np.ones((2, 6), np.float32))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(infos["x_position"], position)
    for value, copy in zip(second[:4], saved, strict=True):
        np.testing.assert_array_equal(value, copy)
    env.close()


def test_a_reset_forgets_the_episode_before() -> None:
    """The solver's warm start and the controls are part of the state."""
    env = HalfCheetahBackwardVector(2)

    def episode() -> Actions:
        env.reset(seed=3)
        return np.array([env.step(actions)[0] for actions in noise(30, 2)])

    np.testing.assert_array_equal(episode(), episode())
    env.close()


def test_seeds() -> None:
    env = HalfCheetahBackwardVector(3)
    by_number = env.reset(seed=10)[0]
    by_list = env.reset(seed=[10, 11, 12])[0]
    by_array = env.reset(seed=np.array([10, 11, 12], dtype=np.uint64))[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(by_number, by_list)
    np.testing.assert_array_equal(by_number, by_array)
    assert len({row.tobytes() for row in by_number}) == 3
    assert (env.reset(seed=11)[0] != by_number).any()
    unseeded = env.reset()[0]
    assert (env.reset()[0] != unseeded).any()
    env.close()


def test_a_batch_is_seeded_apart_without_a_seed() -> None:
    env = HalfCheetahBackwardVector(2)
    observations = env.reset()[0]
    assert (observations[0] != observations[1]).any()
    env.close()


def test_a_simulation_does_not_depend_on_its_neighbors() -> None:
    alone, together = HalfCheetahBackwardVector(1), HalfCheetahBackwardVector(4)
    seeds: list[int | None] = [1, 2, 3, 4]
    together.reset(seed=seeds)
    alone.reset(seed=[3])
    for actions in noise(30, 4):
        expected = together.step(actions)
        actual = alone.step(actions[2:3])
        np.testing.assert_array_equal(actual[0][0], expected[0][2])
        assert actual[1][0] == expected[1][2]
    alone.close()
    together.close()


def wrong_actions(env: HalfCheetahBackwardVector) -> None:
    env.step(np.zeros((2, 5), np.float32))


def one_action_for_all(env: HalfCheetahBackwardVector) -> None:
    env.step(np.zeros(6, np.float32))


def too_few_seeds(env: HalfCheetahBackwardVector) -> None:
    env.reset(seed=[1])


def wrong_mask(env: HalfCheetahBackwardVector) -> None:
    env.reset(options={"reset_mask": np.array([True])})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (wrong_actions, r"\(2, 6\), got \(2, 5\)"),
        (one_action_for_all, r"\(2, 6\), got \(6,\)"),
        (too_few_seeds, "2 numbers, got 1"),
        (wrong_mask, r"\(2,\), got \(1,\)"),
    ],
)
def test_wrong_shapes_are_refused(
    mistake: Callable[[HalfCheetahBackwardVector], None], message: str
) -> None:
    env = HalfCheetahBackwardVector(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        mistake(env)
    env.close()


def test_wrong_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        HalfCheetahBackwardVector(0)
    with pytest.raises(ValueError, match="SAME_STEP"):
        HalfCheetahBackwardVector(2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="sometimes"):
        HalfCheetahBackwardVector(2, autoreset_mode="sometimes")


def test_modes_may_be_named_as_text() -> None:
    env = HalfCheetahBackwardVector(1, autoreset_mode=AutoresetMode.DISABLED.value)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    env.close()


def test_arguments_of_half_cheetah_reach_the_batch() -> None:
    batched = HalfCheetahBackwardVector(2, forward_reward_weight=2.0, frame_skip=2)
    plain = HalfCheetahBackwardVector(2, frame_skip=2)
    batched.reset(seed=0)
    plain.reset(seed=0)
    actions = noise(1, 2)[0]
    doubled, once = batched.step(actions)[4], plain.step(actions)[4]
    np.testing.assert_array_equal(doubled["reward_run"], 2.0 * once["reward_run"])
    assert batched.dt == plain.dt == pytest.approx(0.02)
    batched.close()
    plain.close()


def test_each_simulation_keeps_its_warm_start() -> None:
    """What stepping through a shared scratch simulation would lose."""
    env = HalfCheetahBackwardVector(2)
    env.reset(seed=0)
    for actions in noise(20, 2):
        env.step(actions)
    warm_starts = [data.qacc_warmstart for data in env.simulations.data]
    assert (warm_starts[0] != warm_starts[1]).any()
    env.close()
