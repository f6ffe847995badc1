"""Take the first steps in a user's environments, in any simulator quickly, and judge them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.config.settings import Settings
from maml_ray.envs.user_errors import (
    OLD_API,
    UserCodeError,
    closing_env,
    place_of_definition,
    user_code,
)
from maml_ray.rollouts.collector import seed_argument
from maml_ray.tasks.gymnasium_tasks import GymnasiumTasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import (
    Task,
    TaskDistribution,
    draw_tasks,
    has_own_batches,
    opened_env,
    unusable_tasks,
)

_EPISODES = 2


def try_first_steps(settings: Settings, tasks: TaskDistribution) -> None:
    """Sample a meta-batch and take the first steps in the user's environment, before Ray starts.

    The part of :func:`maml_ray.check_tasks` that is quick. Built-in families pass.

    Args:
        settings: of the run.
        tasks: its task distribution.

    Raises:
        SettingsError: training would fail at the same.
    """
    if settings.task.env is None and settings.task.name in TASK_FAMILIES:
        return
    horizon = settings.task.horizon
    try:
        task = draw_tasks(tasks, np.random.default_rng(0), settings.meta_batch.tasks)[0]
        with opened_env(tasks, task, horizon) as env:
            step_env(env)
        create_extremes(tasks, horizon)
        if has_own_batches(tasks):
            _step_batch(tasks, task, horizon)
    except UserCodeError as error:
        raise unusable_tasks(settings.task.name, error) from error


def create_extremes(tasks: TaskDistribution, horizon: int) -> None:
    """Create environments near the ends of ranges that settings give, as a later task may be.

    Raises:
        UserCodeError: the environment refuses them.
    """
    if isinstance(tasks, GymnasiumTasks) and tasks.ranges:
        for task in tasks.extremes():
            with opened_env(tasks, task, horizon):
                pass


def step_env(env: gym.Env[Any, Any]) -> None:
    """Reset an environment and take a step.

    Raises:
        UserCodeError: either raises an error or returns what Gymnasium's interface does not allow.
    """
    reset, step = (getattr(type(env.unwrapped), name) for name in ("reset", "step"))
    place = place_of_definition(reset)
    with user_code("reset", reset):
        returned: Any = env.reset(seed=0)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise UserCodeError(f"reset returns {_shown(returned)}{place}: {OLD_API}")
    _check_shape(f"reset{place}", env, returned[0])
    env.action_space.seed(0)
    place = place_of_definition(step)
    with user_code("step", step):
        returned = env.step(env.action_space.sample())
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise UserCodeError(f"step returns {_shown(returned)}{place}: {OLD_API}")
    _check_shape(f"step{place}", env, returned[0])
    if not _is_number(returned[1]):
        raise UserCodeError(
            f"step{place} returns the reward {_on_one_line(returned[1])}: return a number"
        )


def _shown(returned: Any) -> str:
    number = f"{len(returned)} values" if isinstance(returned, tuple) else "no tuple"
    return f"{number}, {_on_one_line(returned)}"


def _on_one_line(value: Any) -> str:
    return f"{' '.join(repr(value).split()):.60}"


def _check_shape(where: str, env: gym.Env[Any, Any], observation: Any) -> None:
    expected, shape = env.observation_space.shape, np.shape(observation)
    if shape != expected:
        raise UserCodeError(
            f"{where} returns an observation of shape {shape}, but the shape of its "
            f"observation_space is {expected}"
        )


def _is_number(reward: Any) -> bool:
    """Return whether a reward is one number, by itself or in an array or a list."""
    try:  # NumPy makes NaN of None
        return reward is not None and np.asarray(reward, np.float64).size == 1
    except (TypeError, ValueError):
        return False


def _step_batch(tasks: TaskDistribution, task: Task, horizon: int) -> None:
    """Create a batch by the family's own ``make_vector_env``, reset it and take a step.

    Raises:
        UserCodeError: one of these raises an error, or it is no batch.
    """
    with user_code("make_vector_env", tasks.make_vector_env):
        batch = tasks.make_vector_env(task, num_envs=_EPISODES, horizon=horizon)
    if not isinstance(batch, VectorEnv):
        raise UserCodeError(
            f"make_vector_env returns a {type(batch).__name__}, not a gymnasium.vector.VectorEnv"
        )
    with closing_env(batch), user_code("the batch"):
        batch.reset(seed=seed_argument(batch, list(range(_EPISODES))))
        batch.step(np.stack([batch.single_action_space.sample() for _ in range(_EPISODES)]))
