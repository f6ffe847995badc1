from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from maml_ray.config.settings import SettingsError, TaskSettings
from maml_ray.tasks.half_cheetah import HalfCheetahBackwardTasks
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, TaskDistribution


class PendulumTasks(TaskDistribution):
    """What a user would write: no batch of its own."""

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(Task("gravity", (("g", float(rng.uniform(5, 15))),)) for _ in range(count))

    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return gym.make("Pendulum-v1", max_episode_steps=horizon, **dict(task.parameters))  # type: ignore[arg-type]


class NeedsArguments(PendulumTasks):
    def __init__(self, size: int) -> None:
        self.size = size


class Unfinished(TaskDistribution):
    pass


def test_built_in_names() -> None:
    assert set(TASK_FAMILIES) >= {"half-cheetah-backward"}
    for name in TASK_FAMILIES:
        assert isinstance(resolve_tasks(TaskSettings(name=name)), TaskDistribution)
    assert type(resolve_tasks(TaskSettings())) is HalfCheetahBackwardTasks


def test_a_class_of_ones_own() -> None:
    tasks = resolve_tasks(TaskSettings(name=f"{__name__}:PendulumTasks"))
    assert isinstance(tasks, PendulumTasks)
    first, second = tasks.sample(np.random.default_rng(0), 2)
    assert first != second
    env = tasks.make_vector_env(first, num_envs=3, horizon=4)
    env.reset(seed=0)
    truncations = [env.step(np.zeros((3, 1), np.float32))[3].all() for _ in range(4)]
    assert truncations == [False, False, False, True]
    gravities = [single.unwrapped.g for single in env.envs]  # type: ignore[attr-defined]
    assert gravities == [dict(first.parameters)["g"]] * 3
    env.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half-cheetah-backwards", "did you mean 'half-cheetah-backward'"),
        ("zzz", "built in: .*half-cheetah-backward"),
        ("module:", "not known"),
        (":Class", "not known"),
        ("no_such_module:Class", "cannot be loaded.*no_such_module"),
        (".relative:Class", "cannot be loaded"),
        (f"{__name__}:Missing", "cannot be loaded.*Missing"),
        (f"{__name__}:np", "not a subclass"),
        (f"{__name__}:Task", "not a subclass"),
        ("maml_ray.tasks.task:TaskDistribution", "task.name"),
        (f"{__name__}:Unfinished", "task.name"),
        (f"{__name__}:NeedsArguments", "task.name"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        resolve_tasks(TaskSettings(name=name))
    assert "task.name" in str(caught.value)
