"""Reuse vector environments for different tasks of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.vector import VectorEnv

from maml_ray.envs.user_errors import user_code
from maml_ray.tasks.task import Task, TaskDistribution
from maml_ray.tasks.task_lookup import find_task


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
        self._found: set[Task] = set()

    def find(self, wanted: Task | str | Mapping[str, Any]) -> Task:
        """Return a task of the family as :func:`find_task` does, which compares each task once.

        Raises:
            ValueError, UserCodeError: as :func:`find_task`.
        """
        if isinstance(wanted, Task) and wanted in self._found:
            return wanted
        found = find_task(self.tasks, wanted)
        self._found.add(found)
        return found

    def get(self, task: Task, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Return ``num_envs`` environments of ``task``; valid until the next call.

        Raises:
            UserCodeError: the family raises an error.
        """
        if num_envs in self._envs:
            env, current = self._envs[num_envs]
            with user_code("retarget", self.tasks.retarget):
                if task == current or self.tasks.retarget(env, task):
                    self._envs[num_envs] = (env, task)
                    return env
            with user_code("close", env.close):
                env.close()
        with user_code(f"make_vector_env of the task {task.name!r:.60}"):
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
