"""Ants against Ant-v5 and against the papers' formula."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from maml_ray.tasks.families.ant import (
    AntDirection,
    AntVelocity,
    AntVelocityTasks,
    AntVelocityVector,
)


def random_actions(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)


@pytest.mark.parametrize("contact_forces", [False, True])
def test_it_is_ant_v5_but_for_the_reward(contact_forces: bool) -> None:
    env = AntDirection(direction=-1.0, contact_forces=contact_forces)
    plain: Any = gym.make(
        "Ant-v5", include_cfrc_ext_in_observation=contact_forces, ctrl_cost_weight=0.005
    ).unwrapped
    observation, _ = env.reset(seed=5)
    assert observation.shape == ((105,) if contact_forces else (27,))
    np.testing.assert_array_equal(observation, plain.reset(seed=5)[0])
    ends = contacts = 0
    for step, action in enumerate(random_actions(300)):
        mine, theirs = env.step(action), plain.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[2] == theirs[2]
        assert mine[4]["x_velocity"] == theirs[4]["x_velocity"]
        assert mine[4]["x_position"] == theirs[4]["x_position"]
        assert mine[4]["reward_run"] == -theirs[4]["reward_forward"]
        assert mine[4]["reward_control"] == theirs[4]["reward_ctrl"]
        assert mine[4]["speed"] == -theirs[4]["x_velocity"]
        assert ("reward_contact" in mine[4]) == contact_forces
        if contact_forces:
            assert mine[4]["reward_contact"] == theirs[4]["reward_contact"]
            contacts += int(mine[4]["reward_contact"] < 0)
        if mine[2]:
            ends += 1
            np.testing.assert_array_equal(env.reset(seed=step)[0], plain.reset(seed=step)[0])
    assert ends > 0
    assert contacts > 0 or not contact_forces
    env.close()
    plain.close()


@pytest.mark.parametrize("contact_forces", [False, True])
def test_reward_formula_by_hand(contact_forces: bool) -> None:
    direction = AntDirection(direction=-1.0, contact_forces=contact_forces)
    velocity = AntVelocity(speed=2.0, contact_forces=contact_forces)
    for env in (direction, velocity):
        env.reset(seed=1)
    for action in random_actions(40):
        before = direction.data.body("torso").xpos[0]
        to_direction, to_velocity = direction.step(action), velocity.step(action)
        speed = (direction.data.body("torso").xpos[0] - before) / 0.05
        data = copy.copy(direction.data)
        mujoco.mj_rnePostConstraint(direction.model, data)
        forces = np.clip(data.cfrc_ext, -1.0, 1.0)
        cost = 0.5e-2 * np.sum(action.astype(np.float64) ** 2)
        if contact_forces:
            cost += 0.5e-3 * np.sum(forces**2)
        assert to_direction[1] == pytest.approx(-speed - cost + 0.05, rel=1e-5)
        expected = 1.0 - abs(speed - 2.0) - cost + 0.05
        assert to_velocity[1] == pytest.approx(expected, rel=1e-5)
    direction.close()
    velocity.close()


def test_the_step_that_ends_the_episode_earns_the_bonus_too() -> None:
    env = AntVelocity()
    env.reset(seed=0)
    env.data.qpos[2] = 1.5
    step = env.step(np.zeros(8, np.float32))
    assert step[2]
    assert step[4]["reward_survive"] == 0.05
    env.close()


@pytest.mark.parametrize("height", [0.1, 1.5, float("nan")])
def test_it_ends_out_of_its_heights_and_where_nothing_is_finite(height: float) -> None:
    batched = AntVelocityVector(2)
    batched.reset(seed=0)
    state = batched.state
    state.positions[1, 2] = height
    assert batched.is_healthy(state).tolist() == [True, False]
    state.velocities[0, 3] = np.inf
    assert batched.is_healthy(state).tolist() == [False, False]
    batched.close()


def test_arguments_of_ant_reach_the_batch() -> None:
    batched = AntVelocityVector(
        2,
        healthy_z_range=(5.0, 6.0),
        terminate_when_unhealthy=False,
        healthy_reward=3.0,
        contact_forces=True,
        contact_cost_weight=0.0,
    )
    batched.reset(seed=0)
    _, rewards, terminations, _, infos = batched.step(np.zeros((2, 8), np.float32))
    assert not terminations.any()
    np.testing.assert_array_equal(infos["reward_survive"], 3.0)
    np.testing.assert_array_equal(infos["reward_contact"], 0.0)
    np.testing.assert_array_equal(rewards, infos["reward_run"] + 3.0)
    batched.close()


def test_speeds_of_tasks_come_from_the_range() -> None:
    tasks = AntVelocityTasks(speed_range=(1.0, 1.5))
    drawn = tasks.sample(np.random.default_rng(0), 50)
    speeds = [dict(task.parameters)["speed"] for task in drawn]
    assert 1.0 <= min(speeds) < max(speeds) < 1.5
    assert AntVelocityTasks().speed_range == (0.0, 3.0)
    with pytest.raises(ValueError, match="from low to high"):
        AntVelocityTasks(speed_range=(1.0, 1.0))
