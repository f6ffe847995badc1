"""A family of points on a line, to make odd ones of it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space

from maml_ray.tasks.task import Task, TaskDistribution

PLANE = Box(-1.0, 1.0, (2,), np.float32)


class Line(gym.Env[Any, Any]):
    """A point that moves on a line to its goal."""

    observation_space: Space[Any] = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Space[Any] = PLANE

    def __init__(self, goal: float = 0.0) -> None:
        self.goal = goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return self.observe(), {}

    def observe(self) -> Any:
        return np.array([self.x, 1.0], np.float32)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.x += 0.1 * float(np.sum(action))
        return self.observe(), self.reward(), False, False, {}

    def reward(self) -> Any:
        return -abs(self.x - self.goal)


class Lines(TaskDistribution):
    env: type[Line] = Line

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(self.task({"goal": goal}) for goal in rng.uniform(size=count))

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        return gym.wrappers.TimeLimit(self.env(dict(task.parameters)["goal"]), horizon)


def lines_of(**members: Any) -> type[Lines]:
    return type("OddLines", (Lines,), {"env": type("OddLine", (Line,), members)})


def sampling(sample: Any) -> type[Lines]:
    return type("OddLines", (Lines,), {"sample": sample})
