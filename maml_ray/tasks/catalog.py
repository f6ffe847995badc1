"""Describe the built-in task families by their classes, for ``maml-ray tasks``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maml_ray.common.yaml_data import dump_inline
from maml_ray.config.sections import TaskSettings
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import draw_tasks

_SHOWN = 3


@dataclass(frozen=True)
class FamilyDescription:
    """A built-in family.

    Attributes:
        name: value of ``task.name``.
        description: what its tasks are.
        parameters: names of a task's parameters, the first few of many; empty if it has none.
        options: default of each option, as YAML, by its name.
    """

    name: str
    description: str
    parameters: str
    options: Mapping[str, str]


def describe_families() -> Iterator[FamilyDescription]:
    """Yield all built-in families."""
    for name, family in TASK_FAMILIES.items():
        tasks = resolve_tasks(TaskSettings(name=name))
        (task,) = draw_tasks(tasks, np.random.default_rng(0), 1)
        names = [parameter for parameter, _ in task.parameters]
        shown = ", ".join(names[:_SHOWN])
        more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
        signature = inspect.signature(type(tasks)).parameters
        options = {key: _to_yaml(parameter.default) for key, parameter in signature.items()}
        yield FamilyDescription(name, family.description, shown + more, options)


def _to_yaml(value: Any) -> str:
    # A product of constants such as 0.05 * 0.1 has digits that nobody wrote.
    rounded = round(value, 12) if isinstance(value, float) else value
    return dump_inline(list(rounded) if isinstance(rounded, tuple) else rounded)
