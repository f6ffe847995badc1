"""Batches of environments that are made once and turned to whatever task is asked for."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv

from maml_ray.tasks.task import Task, TaskDistribution


class EnvCache:
    """Owns the batches of one task family, one for each number of episodes.

    Args:
        tasks: the family.
        horizon: steps after which an episode is truncated.
    """

    def __init__(self, tasks: TaskDistribution, horizon: int) -> None:
        self.tasks = tasks
        self.horizon = horizon
        self._batches: dict[int, tuple[VectorEnv[Any, Any, Any], Task]] = {}

    def of(self, task: Task, episodes: int) -> VectorEnv[Any, Any, Any]:
        """``episodes`` environments of ``task``; valid until the next call."""
        known = self._batches.get(episodes)
        if known is not None:
            env, before = known
            if task == before or self.tasks.retarget(env, task):
                self._batches[episodes] = (env, task)
                return env
            env.close()
        env = self.tasks.make_vector_env(task, num_envs=episodes, horizon=self.horizon)
        self._batches[episodes] = (env, task)
        return env

    def close(self) -> None:
        """Free them."""
        for env, _ in self._batches.values():
            env.close()
        self._batches.clear()

    def __enter__(self) -> EnvCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
