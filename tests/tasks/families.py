"""The task families, for tests that apply to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from maml_ray.config.sections import TaskSettings
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution


class PendulumTasks(TaskDistribution):
    """What a user would write: pendulums under different gravity, without a batch of their own."""

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(Task("gravity", (("g", float(rng.uniform(5, 15))),)) for _ in range(count))

    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return gym.make("Pendulum-v1", max_episode_steps=horizon, g=dict(task.parameters)["g"])


@dataclass(frozen=True)
class Family:
    """A family, with options that exercise all its features.

    ``falls``: episodes of random actions terminate before their horizon.
    ``held_out_is_disjoint``: evaluation's tasks are never training's.
    ``speed``: infos contain ``speed``.
    """

    name: str
    single: str
    options: Mapping[str, Any] = field(default_factory=dict)
    falls: bool = False
    held_out_is_disjoint: bool = True
    speed: bool = True

    @property
    def env_id(self) -> str:
        return f"maml_ray/{self.single}-v0"

    def tasks(self, *, observe_parameters: bool = False) -> TaskDistribution:
        return resolve_tasks(
            TaskSettings(
                name=self.name,
                options=dict(self.options),
                observe_parameters=observe_parameters,
            )
        )

    def two_tasks(self) -> tuple[Task, Task]:
        """Two tasks, different if the family has two."""
        first, second = self.tasks().sample(np.random.default_rng(0), 2)
        return first, second

    def __str__(self) -> str:
        return self.name + "".join(f" {key}={value}" for key, value in self.options.items())


TORSO = {"torso_position": True}
FAMILIES = (
    Family("half-cheetah-backward", "HalfCheetahBackward", held_out_is_disjoint=False),
    Family("half-cheetah-direction", "HalfCheetahDirection", TORSO, held_out_is_disjoint=False),
    Family("half-cheetah-velocity", "HalfCheetahVelocity"),
    Family("ant-direction", "AntDirection", falls=True, held_out_is_disjoint=False),
    Family("ant-velocity", "AntVelocity", {"contact_forces": True, **TORSO}, falls=True),
    Family("ant-velocity", "AntVelocity", {"speed_range": [1.0, 2.0]}, falls=True),
    Family("walker2d-random-dynamics", "Walker2dRandomDynamics", falls=True),
    Family("hopper-random-dynamics", "HopperRandomDynamics", TORSO, falls=True),
    Family("point-navigation", "PointNavigation", speed=False),
)


def random_actions(env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> Any:
    """(steps, K, A) float32; many lie outside the action space, so that animals fall."""
    drawn = np.random.default_rng(1).standard_normal((steps, *(env.action_space.shape or ())))
    limit = env.single_action_space.high  # type: ignore[attr-defined]
    return (1.5 * limit * drawn).astype(np.float32)
