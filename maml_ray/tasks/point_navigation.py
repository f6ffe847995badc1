"""A point that is to walk to a place in the plane: the papers' smallest task, without physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from pydantic import validate_call

from maml_ray.common.numbers import finite_floats
from maml_ray.config.settings import Finite, Option
from maml_ray.envs.gym_registration import env_id
from maml_ray.envs.vector_env import BatchEnv, Float64, Transition
from maml_ray.tasks.held_out import uniform_held_out, uniform_trained
from maml_ray.tasks.point_picture import draw
from maml_ray.tasks.task import Task, TaskDistribution

LONGEST_STEP = 0.1
"""Per axis and step."""
ARRIVED = 0.01
"""An episode ends when the point is nearer to the goal than this on both axes."""
_FAR = 1e6  # of the observation space: further than any point gets in an episode


class PointNavigation(gym.Env[Float64, NDArray[Any]]):
    """A point that starts at the origin; ``reward = -distance to the goal`` after the step.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3, "2D navigation", as in
    pytorch-maml-rl's ``Navigation2DEnv``. The observation is the place (x, y); the action,
    clipped to 0.1 on each axis, is added to it. An episode ends within 0.01 of the goal.

    Args:
        goal: x and y of the place to go to.
        render_mode: ``rgb_array``, a picture of 480 by 480 in plain numpy, or None.

    Raises:
        ValueError: the goal is not two finite numbers, or the render mode is another.
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
        self.observation_space = Box(-_FAR, _FAR, (2,), np.float64)
        self.action_space = Box(-LONGEST_STEP, LONGEST_STEP, (2,), np.float32)
        self._trail = [np.zeros(2)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float64, dict[str, Any]]:
        """Back to the origin."""
        super().reset(seed=seed)
        self._trail = [np.zeros(2)]
        return self._trail[0].copy(), {}

    def step(self, action: NDArray[Any]) -> tuple[Float64, float, bool, bool, dict[str, Any]]:
        """Move by ``action`` (2,)."""
        place = moved(self._trail[-1], action)
        self._trail.append(place)
        reward, arrived = judged(place, self.goal)
        return place.copy(), float(reward), bool(arrived), False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The goal, the trail of this episode and the point, (480, 480, 3) uint8."""
        return None if self.render_mode is None else draw(np.array(self._trail), self.goal)


def moved(places: Float64, actions: NDArray[Any]) -> Float64:
    """Places (..., 2) after actions (..., 2)."""
    after: Float64 = places + np.minimum(np.maximum(actions, -LONGEST_STEP), LONGEST_STEP)
    return after


def judged(places: Float64, goal: Float64) -> tuple[Any, Any]:
    """Rewards (...) of being at ``places`` (..., 2), and whether that is the goal (2,)."""
    away = places - goal
    x, y = away[..., 0], away[..., 1]
    return -np.sqrt(x * x + y * y), (np.abs(x) < ARRIVED) & (np.abs(y) < ARRIVED)


class PointNavigationVector(BatchEnv):
    """A batch of :class:`PointNavigation` with one goal, which may be set between episodes.

    Raises:
        ValueError: a render mode is asked for.
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
        self._places = np.zeros((num_envs, 2))

    def reset_one(self, i: int) -> None:
        """Back to the origin."""
        self._places[i] = 0.0

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """Move those in ``indices``."""
        chosen: Any = slice(None) if len(indices) == self.num_envs else indices
        self._places[chosen] = moved(self._places[chosen], actions[chosen])

    def observe(self) -> Float64:
        """The places (K, 2)."""
        return self._places.copy()

    def assess(self, actions: NDArray[Any]) -> Transition:
        """Minus the distance to the goal; the end on arrival."""
        rewards, arrived = judged(self._places, self.goal)
        return Transition(rewards, arrived, {})


class PointNavigationTasks(TaskDistribution):
    """Goals drawn uniformly from a square, ``{"x": 0.3, "y": -0.1}``.

    Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3; episodes of 100 steps there.
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
        """Goals from the strips that training sees."""
        return self._tasks(rng, uniform_trained(rng, *self.goal_range, count))

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Goals from the strips that training never sees."""
        return self._tasks(rng, uniform_held_out(rng, *self.goal_range, count))

    def _tasks(self, rng: np.random.Generator, xs: Float64) -> tuple[Task, ...]:
        return tuple(map(self._task, xs, rng.uniform(*self.goal_range, len(xs))))

    def task(self, parameters: Mapping[str, float]) -> Task:
        """The task of ``{"x": 0.3, "y": -0.1}``, any place."""
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
        """One environment, through ``gymnasium.make``."""
        return gym.make(
            env_id("PointNavigation"),
            max_episode_steps=horizon,
            render_mode=render_mode,
            goal=self._goal(task),
        )

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The batch."""
        return PointNavigationVector(
            num_envs,
            goal=self._goal(task),
            max_episode_steps=horizon,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Another goal for the same points."""
        assert isinstance(env, PointNavigationVector)
        env.goal = np.array(self._goal(task))
        return True
