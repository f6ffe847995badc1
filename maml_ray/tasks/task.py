"""Define tasks and the interface of task distributions."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.common.errors import escape_unprintable
from maml_ray.common.numbers import plain_scalar
from maml_ray.config.error_messages import SettingsError
from maml_ray.envs.user_errors import (
    UserCodeError,
    closing_env,
    place_of_definition,
    user_code,
)
from maml_ray.envs.vector_env import NumbersOnly

SHOWN_PARAMETERS = 4
"""Parameters of a task in its repr and in messages: random dynamics have dozens."""


@dataclass(frozen=True, init=False)
class Task:
    """One task of a distribution, which JSON, CSV and other processes keep as it is.

    Attributes:
        name: short and readable, for logs and reports; on one line.
        parameters: what distinguishes it from the distribution's other tasks: numbers, booleans or
            text by name. Given as pairs or as a mapping; NumPy's scalars become Python's.

    Raises:
        ValueError: the name is not text, or a parameter is something else or not finite.
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __init__(
        self, name: str, parameters: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of a task must be text, got {name!r:.60}")
        object.__setattr__(self, "name", escape_unprintable(str.__str__(name)))
        object.__setattr__(self, "parameters", tuple(_plain_pairs(self.name, parameters)))

    def __repr__(self) -> str:
        shown = [f"{key}={value}" for key, value in self.parameters[:SHOWN_PARAMETERS]]
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

    def task(self, parameters: Mapping[str, Any]) -> Task:
        """Return the task with ``parameters``, as given on the command line.

        :func:`..task_lookup.find_task` then compares their names with those of sampled tasks.

        Raises:
            ValueError: there is no such task; the message says which there are.
        """
        checked = Task("default", tuple(parameters.items())).parameters
        name = ", ".join(
            f"{key} {value}" if isinstance(value, str) else f"{key} {value:g}"
            for key, value in checked
        )
        return Task(name or "default", checked)

    def named_tasks(self) -> tuple[Task, ...]:
        """Return the tasks of a family of a few, which can then be asked for by name.

        By default none, as for families that draw tasks from a range.
        """
        return ()

    @abstractmethod
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create an environment of ``task`` that truncates episodes after ``horizon`` steps."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create a batch of ``num_envs`` environments of ``task``, with autoreset.

        Of the environments' infos it has the numbers.
        """
        return gym.vector.SyncVectorEnv(
            [lambda: NumbersOnly(self.make_env(task, horizon=horizon))] * num_envs,
            autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
        )

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Switch ``env``, created by :meth:`make_vector_env`, to another task if possible.

        Rollout actors get tasks in any order; this avoids creating environments for each.

        Returns:
            False, with ``env`` unchanged, if a new batch must be created.
        """
        return False


def distinct_names(tasks: Iterable[Task]) -> dict[Task, str]:
    """Return the name of each distinct task, with a number if an earlier one has the same."""
    names: dict[Task, str] = {}
    distinct = list(dict.fromkeys(tasks))
    used: set[str] = set()
    own = {task.name for task in distinct}
    for task in distinct:
        numbered = (f"{task.name} ({number})" for number in itertools.count(2))
        name = task.name
        if name in used:
            name = next(each for each in numbered if each not in used | own)
        used.add(name)
        names[task] = name
    return names


def draw_tasks(
    tasks: TaskDistribution, rng: np.random.Generator, count: int, *, held_out: bool = False
) -> tuple[Task, ...]:
    """Draw ``count`` tasks to train on, or held-out ones, and check what the family returns.

    Raises:
        UserCodeError: the family raises an error or does not return ``count`` tasks.
    """
    sample: Callable[[np.random.Generator, int], Any] = (
        tasks.sample_held_out if held_out else tasks.sample
    )
    call = f"{'sample_held_out' if held_out else 'sample'}(rng, {count})"
    with user_code(call, sample):
        drawn = sample(rng, count)
    problem = sampling_problem(drawn, count)
    if problem is not None:
        raise UserCodeError(f"{call} {problem}{place_of_definition(sample)}")
    return tuple(drawn)


def create_env(tasks: TaskDistribution, task: Task, horizon: int) -> gym.Env[Any, Any]:
    """Create an environment of a task.

    Raises:
        UserCodeError: the family raises an error, or does not return an environment.
    """
    call = f"make_env of the task {task.name!r:.60}"
    with user_code(call, tasks.make_env):
        env = tasks.make_env(task, horizon=horizon)
    if env is None:
        raise UserCodeError(f"{call} returns None: end it with 'return env'")
    if not isinstance(env, gym.Env):
        raise UserCodeError(
            f"{call} returns a {type(env).__module__}.{type(env).__name__}, not a gymnasium.Env: "
            "derive it from gymnasium.Env, or wrap an older environment (gymnasium.farama.org, "
            "Shimmy)"
        )
    return env


def opened_env(
    tasks: TaskDistribution, task: Task, horizon: int
) -> AbstractContextManager[gym.Env[Any, Any]]:
    """Create an environment as :func:`create_env` does, for a block, and close it after that.

    Raises:
        UserCodeError: as :func:`create_env`, or closing it raises an error.
    """
    return closing_env(create_env(tasks, task, horizon))


def has_own_batches(tasks: TaskDistribution) -> bool:
    """Return whether a family has a ``make_vector_env`` of its own."""
    return type(tasks).make_vector_env is not TaskDistribution.make_vector_env


def unusable_tasks(name: str, error: Exception) -> SettingsError:
    """Return the error of settings that name tasks, by ``task.name``, whose code fails."""
    return SettingsError(f"task.name = {name!r:.80} cannot be used: {error}")


def sampling_problem(drawn: Any, count: int | None = None) -> str | None:
    """Return why what a family has returned is not ``count`` tasks, or any number; or None."""
    if not isinstance(drawn, Sequence) or isinstance(drawn, str):
        return f"returns a {type(drawn).__name__}: return a tuple of maml_ray.Task"
    odd = next((one for one in drawn if not isinstance(one, Task)), None)
    if odd is not None:
        return f"returns a {type(odd).__name__} among the tasks: write self.task({{...}})"
    if count is not None and len(drawn) != count:
        return f"returns {len(drawn)} tasks: return as many as asked for"
    return None


def _plain_pairs(name: str, parameters: Any) -> Sequence[tuple[str, Any]]:
    """Return a task's parameters as pairs of text and plain values.

    Raises:
        ValueError: they are not.
    """
    items = parameters.items() if isinstance(parameters, Mapping) else parameters
    try:
        pairs = [tuple(item) for item in items]
        if any(isinstance(item, str) or len(item) != 2 for item in items):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"the parameters of the task {name!r:.60} are pairs of name and value, such as "
            f"(('goal', 0.5),), got {parameters!r:.60}"
        ) from None
    plain: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str) or key in plain:
            raise ValueError(
                f"the parameters of the task {name!r:.60} have the name {key!r:.60}: give each a "
                "text of its own"
            )
        try:
            plain[str(plain_scalar(key))] = plain_scalar(value)
        except ValueError as error:
            raise ValueError(
                f"the parameter {key!r:.60} of the task {name!r:.60} {error}"
                + ("; give each number a name of its own" if _is_array(value) else "")
            ) from None
    return list(plain.items())


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or bool(getattr(value, "shape", ()))
