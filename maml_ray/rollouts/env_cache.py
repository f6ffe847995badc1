"""Reuse vector environments for different tasks of a family."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv

from maml_ray.tasks.task import Task, TaskDistribution


class EnvCache:
    """Owns one vector environment per batch size, and retargets it to the task requested.

    Args:
        tasks: task family.
        horizon: steps after which an episode is truncated.
    """

    def __init__(self, tasks: TaskDistribution, horizon: int) -> None:
        self.tasks = tasks
        self.horizon = horizon
        self._envs: dict[int, tuple[VectorEnv[Any, Any, Any], Task]] = {}

    def get(self, task: Task, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Return ``num_envs`` environments of ``task``; valid until the next call."""
        if num_envs in self._envs:
            env, current = self._envs[num_envs]
            if task == current or self.tasks.retarget(env, task):
                self._envs[num_envs] = (env, task)
                return env
            env.close()
        env = self.tasks.make_vector_env(task, num_envs=num_envs, horizon=self.horizon)
        self._envs[num_envs] = (env, task)
        return env

    def close(self) -> None:
        """Close the environments."""
        for env, _ in self._envs.values():
            env.close()
        self._envs.clear()

    def __enter__(self) -> EnvCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
