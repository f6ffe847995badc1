"""Define tasks and the interface of task distributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.common.numbers import finite_floats
from maml_ray.config.error_messages import did_you_mean

_SHOWN_PARAMETERS = 4  # of a task, in its repr and in messages; random dynamics have dozens


@dataclass(frozen=True)
class Task:
    """One task of a distribution.

    Attributes:
        name: short and readable, for logs and reports.
        parameters: what distinguishes it from the distribution's other tasks.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __repr__(self) -> str:
        shown = [f"{key}={value}" for key, value in self.parameters[:_SHOWN_PARAMETERS]]
        if len(self.parameters) > len(shown):
            shown.append(f"... {len(self.parameters)} parameters")
        return f"Task({', '.join([repr(self.name), *shown])})"


class TaskDistribution(ABC):
    """A family of tasks that share observation and action spaces.

    A subclass must sample tasks and create one environment; a batch is then Gymnasium's
    synchronous vector environment. Override :meth:`make_vector_env` for simulations that can be
    stepped faster together, and :meth:`retarget` for batches that can switch to another task.

    Train on it with ``maml_ray.train(tasks=MyTasks)`` or ``tasks=MyTasks(...)``, wherever it is
    defined, or by its path, ``task.name = "module:MyTasks"``. Named by its path, its constructor is
    called with ``task.options`` as keyword arguments, each of which needs a default.
    :func:`maml_ray.check_tasks` tries a subclass before a run does.

    Attributes:
        action_bounds: what happens to continuous actions unless ``policy.action_bounds`` is set:
            ``clip``, ``rescale`` or ``none``.
    """

    action_bounds: str = "clip"

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to train on, with no randomness except ``rng``."""

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw ``count`` tasks to evaluate on, if possible none that :meth:`sample` draws.

        By default, and for families of a few tasks, the same as :meth:`sample`.
        """
        return self.sample(rng, count)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task with ``parameters``, as given on the command line.

        Raises:
            ValueError: there is no such task; the message says which there are.
        """
        values = finite_floats(parameters)
        name = ", ".join(f"{key} {value:g}" for key, value in values.items())
        return Task(name or "default", tuple(values.items()))

    def named_tasks(self) -> tuple[Task, ...]:
        """Return the tasks of a family of a few, which can then be asked for by name.

        By default none, as for families that draw tasks from a range.
        """
        return ()

    @abstractmethod
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create an environment of ``task`` that truncates episodes after ``horizon`` steps."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create a batch of ``num_envs`` environments of ``task``, with autoreset."""
        return gym.vector.SyncVectorEnv(
            [lambda: self.make_env(task, horizon=horizon)] * num_envs,
            autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Switch ``env``, created by :meth:`make_vector_env`, to another task if possible.

        Rollout actors get tasks in any order; this avoids creating environments for each.

        Returns:
            False, with ``env`` unchanged, if a new batch must be created.
        """
        return False


def find_task(tasks: TaskDistribution, wanted: Task | str | Mapping[str, float]) -> Task:
    """Return the task of a distribution that a user asks for.

    Args:
        tasks: the distribution.
        wanted: the name of one of :meth:`TaskDistribution.named_tasks`, a task's parameters, or a
            task, which is returned unchanged if the distribution has one of its parameters.

    Raises:
        ValueError: there is no such task; the message says which there are.
    """
    if isinstance(wanted, Task):
        tasks.task(dict(wanted.parameters))
        return wanted
    if isinstance(wanted, Mapping):
        return tasks.task(wanted)
    if not isinstance(wanted, str):
        raise ValueError(
            f"a task is a name, a dictionary of parameters or a maml_ray.Task, got {wanted!r:.80}"
        )
    named = {task.name: task for task in tasks.named_tasks()}
    if wanted in named:
        return named[wanted]
    if named:
        names = " and ".join(map(repr, named))
        verb = "is" if len(named) == 1 else "are"
        raise ValueError(f"there {verb} {names}, not {wanted!r:.80}{did_you_mean(wanted, named)}")
    raise ValueError(
        f"its tasks have no names such as {wanted!r:.80}, but parameters: {_example(tasks)}"
    )


def _example(tasks: TaskDistribution) -> str:
    """Return parameters of one task as a user writes them."""
    parameters = tasks.sample(np.random.default_rng(0), 1)[0].parameters
    shown = [f'"{key}": {value:.3g}' for key, value in parameters[:_SHOWN_PARAMETERS]]
    return "{" + ", ".join(shown) + (", ...}" if len(parameters) > len(shown) else "}")
