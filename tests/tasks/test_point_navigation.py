"""The point against a slow, obviously correct loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.tasks.families.point_navigation import (
    PointNavigation,
    PointNavigationTasks,
    PointNavigationVector,
    draw_trail,
)

Steps = list[tuple[float, float, float, bool]]
coordinates = st.floats(-0.5, 0.5)
moves = st.lists(
    st.tuples(st.floats(-0.25, 0.25, width=32), st.floats(-0.25, 0.25, width=32)),
    min_size=1,
    max_size=20,
)


def slow_walk(goal: tuple[float, float], actions: list[tuple[float, float]]) -> Steps:
    """Return x, y, reward and arrival of each step."""
    longest = float(np.float32(0.1))
    x = y = 0.0
    steps = []
    for dx, dy in actions:
        x += min(max(dx, -longest), longest)
        y += min(max(dy, -longest), longest)
        away = math.hypot(x - goal[0], y - goal[1])
        steps.append((x, y, -away, abs(x - goal[0]) < 0.01 and abs(y - goal[1]) < 0.01))
    return steps


@given(coordinates, coordinates, moves)
def test_one_and_many_walk_as_the_slow_loop_does(
    x: float, y: float, actions: list[tuple[float, float]]
) -> None:
    env = PointNavigation(goal=(x, y))
    batch: Any = PointNavigationVector(2, goal=(x, y), autoreset_mode=AutoresetMode.DISABLED)
    assert env.reset(seed=0)[0].tolist() == [0.0, 0.0]
    batch.reset(seed=0)
    for action, expected in zip(actions, slow_walk((x, y), actions), strict=True):
        given_action = np.array(action, np.float32)
        position, reward, terminated, truncated, info = env.step(given_action)
        np.testing.assert_allclose((*position, reward), expected[:3], rtol=1e-12, atol=1e-12)
        assert (terminated, truncated, info) == (expected[3], False, {})
        other = np.zeros(2, np.float32)
        positions, rewards, ends, _, _ = batch.step(np.stack([given_action, other]))
        assert (positions[0].tolist(), rewards[0], ends[0]) == (
            position.tolist(),
            reward,
            terminated,
        )
        assert positions[1].tolist() == [0.0, 0.0]


def test_an_arrived_point_is_reset_by_the_batch() -> None:
    env = PointNavigationVector(2, goal=(0.2, 0.0), max_episode_steps=50)
    env.reset(seed=0)
    actions = np.array([[0.1, 0.0], [0.0, 0.1]], np.float32)
    assert env.step(actions)[2].tolist() == [False, False]
    assert env.step(actions)[2].tolist() == [True, False]
    positions, rewards, terminations, _, _ = env.step(actions)
    assert positions[0].tolist() == [0.0, 0.0]
    assert rewards[0] == 0.0
    assert not terminations.any()
    np.testing.assert_allclose(positions[1], [0.0, 0.3], atol=1e-6)
    env.close()


def test_goals_are_held_out_in_strips_of_x() -> None:
    tasks = PointNavigationTasks()

    def goals(drawn: Any) -> Any:
        return np.array([[value for _, value in task.parameters] for task in drawn])

    trained = goals(tasks.sample(np.random.default_rng(0), 3000))
    held_out = goals(tasks.sample_held_out(np.random.default_rng(1), 3000))
    for drawn in (trained, held_out):
        assert (np.abs(drawn) <= 0.5).all()
        assert (drawn.min(axis=0) < -0.4).all()
        assert (drawn.max(axis=0) > 0.4).all()
        np.testing.assert_allclose(drawn[:, 1].mean(), 0.0, atol=0.03)
    strips = [set(np.floor((drawn[:, 0] + 0.5) * 50).astype(int)) for drawn in (trained, held_out)]
    assert strips[0] | strips[1] == set(range(50))
    assert not strips[0] & strips[1]


def test_the_picture_shows_goal_trail_and_point() -> None:
    env = PointNavigation(goal=(0.5, 0.25), render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([-0.1, 0.1], np.float32))
    picture = env.render()
    assert picture is not None

    def color(x: float, y: float) -> list[int]:
        row, column = (round(479 * (1 - y / 0.75) / 2), round(479 * (1 + x / 0.75) / 2))
        return [int(value) for value in picture[row, column]]

    assert color(0.5, 0.25) == [220, 60, 50]
    assert color(-0.3, 0.3) == [20, 90, 180]
    assert color(-0.15, 0.15) == [150, 190, 230]
    assert color(-0.5, -0.5) == [255, 255, 255]
    assert PointNavigation().render() is None


def test_the_picture_holds_a_point_that_walks_off() -> None:
    far = draw_trail(np.array([[0.0, 0.0], [30.0, -30.0]]), np.array([0.5, 0.5]))
    assert (far == (20, 90, 180)).all(axis=-1).any()


@pytest.mark.parametrize("goal", [(0.1,), (0.1, float("nan")), (0.1, 0.2, 0.3)])
def test_wrong_goals_are_refused(goal: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two finite numbers"):
        PointNavigation(goal=goal)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="render_mode"):
        PointNavigation(render_mode="human")
    with pytest.raises(ValueError, match="from low to high"):
        PointNavigationTasks(goal_range=(0.5, -0.5))
