"""Find the task of a distribution that a user asks for, by its name or its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maml_ray.config.error_messages import did_you_mean
from maml_ray.envs.user_errors import (
    UserCodeError,
    converted_errors,
    describe_user_error,
    place_of_definition,
    user_code,
)
from maml_ray.tasks.task import (
    SHOWN_PARAMETERS,
    Task,
    TaskDistribution,
    draw_tasks,
    sampling_problem,
)

_EXAMPLES = 8
"""Tasks sampled to learn which parameters a family has."""


def find_task(tasks: TaskDistribution, wanted: Task | str | Mapping[str, Any]) -> Task:
    """Return the task of a distribution that a user asks for.

    Args:
        tasks: the distribution.
        wanted: the name of one of :meth:`TaskDistribution.named_tasks`, a task's parameters, or a
            task, which is returned unchanged if the distribution has one of its parameters.

    Raises:
        ValueError: there is no such task; the message says which there are.
        UserCodeError: the family raises another error.
    """
    if isinstance(wanted, Task):
        _find_by_parameters(tasks, dict(wanted.parameters))
        return wanted
    if isinstance(wanted, Mapping):
        return _find_by_parameters(tasks, wanted)
    if not isinstance(wanted, str):
        raise ValueError(
            f"a task is a name, a dictionary of parameters or a maml_ray.Task, got {wanted!r:.80}"
        )
    named = {task.name: task for task in _named_tasks(tasks)}
    if wanted in named:
        return named[wanted]
    if named:
        names = " and ".join(map(repr, named))
        verb = "is" if len(named) == 1 else "are"
        raise ValueError(f"there {verb} {names}, not {wanted!r:.80}{did_you_mean(wanted, named)}")
    raise ValueError(
        f"its tasks have no names such as {wanted!r:.80}, but parameters: "
        f"{_example(_some_tasks(tasks)[0])}"
    )


def _find_by_parameters(tasks: TaskDistribution, wanted: Mapping[str, Any]) -> Task:
    """Return the task with ``wanted`` parameters, in order and type as the family samples them."""
    call = f"task({dict(wanted)!r:.80})"

    def convert(error: BaseException) -> BaseException:
        if isinstance(error, ValueError):  # says which tasks there are
            return error
        return UserCodeError(f"{call} raises {describe_user_error(error)}")

    with converted_errors(convert):
        found = tasks.task(wanted)
    if not isinstance(found, Task):
        raise UserCodeError(f"{call} returns {found!r:.60}, not a maml_ray.Task")
    sampled = _some_tasks(tasks)
    known: dict[str, Any] = {}
    for task in sampled:
        known |= {key: value for key, value in task.parameters if key not in known}
    values = dict(found.parameters)
    for key in values:
        if key not in known:
            raise ValueError(
                f"its tasks have no parameter {key!r:.60}; one of them is {_example(sampled[0])}"
                f"{did_you_mean(key, known)}"
            )
    for key in known:
        if key not in values and all(key in dict(task.parameters) for task in sampled):
            raise ValueError(
                f"the parameter {key!r:.60} is missing; one of its tasks is {_example(sampled[0])}"
            )
    ordered = tuple((key, _like(known[key], values[key], key)) for key in known if key in values)
    # By repr, since 1 == 1.0.
    return found if repr(ordered) == repr(found.parameters) else Task(found.name, ordered)


def _some_tasks(tasks: TaskDistribution) -> list[Task]:
    """Return a few tasks of each kind; drawn one at a time, since a family may have few."""
    rng = np.random.default_rng(0)
    drawn = [
        draw_tasks(tasks, rng, 1, held_out=held_out)[0]
        for held_out in (False, True)
        for _ in range(_EXAMPLES)
    ]
    return [*drawn, *_named_tasks(tasks)]


def _named_tasks(tasks: TaskDistribution) -> Sequence[Task]:
    call = "named_tasks()"
    with user_code(call, tasks.named_tasks):
        named: Any = tasks.named_tasks()
    problem = sampling_problem(named)
    if problem is not None:
        raise UserCodeError(f"{call} {problem}{place_of_definition(tasks.named_tasks)}")
    return tuple(named)


def _like(example: Any, value: Any, key: str) -> Any:
    """Return ``value`` as the type of ``example``: 1.0 from JSON is the index 1, and 2 is 2.0."""
    if isinstance(example, str) is not isinstance(value, str):
        kind = "text" if isinstance(example, str) else "a number"
        raise ValueError(
            f"the parameter {key} is {kind} such as {example!r:.60}, got {value!r:.60}"
        )
    if isinstance(example, bool) or isinstance(value, bool):
        return value
    if isinstance(example, float) and isinstance(value, int):
        return float(value)
    if isinstance(example, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _example(task: Task) -> str:
    """Return the parameters of a task as a user writes them."""
    shown = [
        f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {value:.3g}'
        for key, value in task.parameters[:SHOWN_PARAMETERS]
    ]
    return "{" + ", ".join(shown) + (", ...}" if len(task.parameters) > len(shown) else "}")
