"""Navigate a point to a goal in the plane: the papers' smallest task, without physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.common.numbers import finite_floats
from maml_ray.config.value_types import Finite, Option
from maml_ray.envs.vector_env import BatchEnv, Float64, Transition
from maml_ray.tasks.held_out import uniform_held_out, uniform_training
from maml_ray.tasks.registry import env_id
from maml_ray.tasks.task import Task, TaskDistribution

MAX_STEP = 0.1
"""Largest movement on an axis in a step."""
GOAL_TOLERANCE = 0.01
"""An episode ends when the point is nearer to the goal than this on both axes."""
_OBSERVATION_BOUND = 1e6  # farther than any point gets in an episode
SIZE = 480
"""Width and height of a drawing in pixels."""
_HALF_WIDTH = 0.75  # of the visible square, unless the point leaves it
_BACKGROUND, _AXES = (255, 255, 255), (225, 225, 225)
_TRAIL, _POINT, _GOAL = (150, 190, 230), (20, 90, 180), (220, 60, 50)


class PointNavigation(gym.Env[Float64, NDArray[Any]]):
    """A point that starts at the origin; ``reward = -distance to the goal`` after the step.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "2D navigation", as in
    pytorch-maml-rl's ``Navigation2DEnv``. The observation is the position (x, y); the action,
    clipped to 0.1 on each axis, is added to it. An episode ends within 0.01 of the goal.

    Args:
        goal: x and y of the goal.
        render_mode: ``rgb_array``, 480 by 480 pixels drawn in NumPy, or None.

    Raises:
        ValueError: the goal is not two finite numbers, or the render mode is unsupported.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self, *, goal: Sequence[float] = (0.5, 0.5), render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.goal: Float64 = np.array(goal, dtype=np.float64)
        if self.goal.shape != (2,) or not np.isfinite(self.goal).all():
            raise ValueError(f"goal must be two finite numbers, got {goal}")
        self.render_mode = render_mode
        self.observation_space = Box(-_OBSERVATION_BOUND, _OBSERVATION_BOUND, (2,), np.float64)
        self.action_space = Box(-MAX_STEP, MAX_STEP, (2,), np.float32)
        self._trail = [np.zeros(2)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float64, dict[str, Any]]:
        """Return to the origin."""
        super().reset(seed=seed)
        self._trail = [np.zeros(2)]
        return self._trail[0].copy(), {}

    def step(self, action: NDArray[Any]) -> tuple[Float64, float, bool, bool, dict[str, Any]]:
        """Move by ``action`` (2,)."""
        position = move(self._trail[-1], action)
        self._trail.append(position)
        reward, is_at_goal = evaluate_positions(position, self.goal)
        return position.copy(), float(reward), bool(is_at_goal), False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the goal, the episode's trail and the point, (480, 480, 3) uint8."""
        return None if self.render_mode is None else draw_trail(np.array(self._trail), self.goal)


def move(positions: Float64, actions: NDArray[Any]) -> Float64:
    """Return positions (..., 2) after actions (..., 2)."""
    after: Float64 = positions + np.minimum(np.maximum(actions, -MAX_STEP), MAX_STEP)
    return after


def evaluate_positions(positions: Float64, goal: Float64) -> tuple[Any, Any]:
    """Return the rewards (...) of ``positions`` (..., 2), and which are at the ``goal`` (2,)."""
    offset = positions - goal
    x, y = offset[..., 0], offset[..., 1]
    return -np.sqrt(x * x + y * y), (np.abs(x) < GOAL_TOLERANCE) & (np.abs(y) < GOAL_TOLERANCE)


class PointNavigationVector(BatchEnv):
    """A batch of :class:`PointNavigation` with one goal, which may be assigned between episodes.

    Raises:
        ValueError: a render mode is requested.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        goal: Sequence[float] = (0.5, 0.5),
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        if render_mode is not None:
            raise ValueError("the batch does not render: use gymnasium.make for that")
        env = PointNavigation(goal=goal)
        super().__init__(
            env, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
        self.goal = env.goal
        self._positions = np.zeros((num_envs, 2))

    def reset_one(self, i: int) -> None:
        """Return simulation ``i`` to the origin."""
        self._positions[i] = 0.0

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """Move the points in ``indices``."""
        rows: Any = slice(None) if len(indices) == self.num_envs else indices
        self._positions[rows] = move(self._positions[rows], actions[rows])

    def observe(self) -> Float64:
        """Return the positions (K, 2)."""
        return self._positions.copy()

    def assess(self, actions: NDArray[Any]) -> Transition:
        """Return minus the distance to the goal, and terminate on arrival."""
        rewards, is_at_goal = evaluate_positions(self._positions, self.goal)
        return Transition(rewards, is_at_goal, {})


class PointNavigationTasks(TaskDistribution):
    """Goals, ``{"x": 0.3, "y": -0.1}``, uniform on a square.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, with episodes of 100 steps.
    Goals in a fifth of the square, in strips of x, are held out for evaluation.

    Args:
        goal_range: lowest and highest x, and y, of a goal.

    Raises:
        ValueError: the range is empty.
    """

    @validate_call
    def __init__(self, *, goal_range: tuple[Option[Finite], Option[Finite]] = (-0.5, 0.5)) -> None:
        if not goal_range[0] < goal_range[1]:
            raise ValueError(f"goal_range must go from low to high, got {list(goal_range)}")
        self.goal_range = goal_range

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw goals from the strips for training."""
        return self._tasks(rng, uniform_training(rng, *self.goal_range, count))

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw goals from the strips that are held out."""
        return self._tasks(rng, uniform_held_out(rng, *self.goal_range, count))

    def _tasks(self, rng: np.random.Generator, xs: Float64) -> tuple[Task, ...]:
        return tuple(map(self._task, xs, rng.uniform(*self.goal_range, len(xs))))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task of ``{"x": 0.3, "y": -0.1}``, any position."""
        if set(parameters) != {"x", "y"}:
            raise ValueError('a task is {"x": <number>, "y": <number>}, the goal')
        values = finite_floats(parameters)
        return self._task(values["x"], values["y"])

    @staticmethod
    def _task(x: float, y: float) -> Task:
        return Task(f"({x:.2f}, {y:.2f})", (("x", float(x)), ("y", float(y))))

    @staticmethod
    def _goal(task: Task) -> tuple[float, float]:
        parameters = dict(task.parameters)
        return parameters["x"], parameters["y"]

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create one environment by ``gymnasium.make``."""
        return gym.make(
            env_id("PointNavigation"),
            max_episode_steps=horizon,
            render_mode=render_mode,
            goal=self._goal(task),
        )

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create a batched simulation."""
        return PointNavigationVector(
            num_envs,
            goal=self._goal(task),
            max_episode_steps=horizon,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Assign the goal of ``task`` to the same points."""
        assert isinstance(env, PointNavigationVector)
        env.goal = np.array(self._goal(task))
        return True


def draw_trail(trail: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw an episode's positions (n, 2) so far and its goal (2,) as (480, 480, 3) uint8.

    In NumPy, so that a video needs no OpenGL.
    """
    half_width = max(_HALF_WIDTH, 1.1 * float(np.abs(trail).max()), 1.1 * float(np.abs(goal).max()))
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = _BACKGROUND
    image[SIZE // 2] = image[:, SIZE // 2] = _AXES
    _draw_disc(image, goal / half_width, 10.0, _GOAL)
    for start, end in pairwise(trail):
        for fraction in (0.0, 0.25, 0.5, 0.75):
            _draw_disc(image, (start + fraction * (end - start)) / half_width, 2.5, _TRAIL)
    _draw_disc(image, trail[-1] / half_width, 6.0, _POINT)
    return image


def _draw_disc(
    image: NDArray[np.uint8],
    center: NDArray[np.float64],
    radius: float,
    color: tuple[int, int, int],
) -> None:
    """Draw a disc at ``center`` (2,); the image's edges are -1 and 1, and y points up."""
    x, y = (SIZE - 1) * (1.0 + center[0]) / 2.0, (SIZE - 1) * (1.0 - center[1]) / 2.0
    left, top = max(0, int(x - radius)), max(0, int(y - radius))
    part = image[top : int(y + radius) + 2, left : int(x + radius) + 2]
    rows = np.arange(top, top + part.shape[0])[:, None] - y
    columns = np.arange(left, left + part.shape[1])[None, :] - x
    part[rows**2 + columns**2 <= radius**2] = color
