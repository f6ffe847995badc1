from __future__ import annotations

import json
import pickle
from enum import StrEnum
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from maml_ray.config.sections import TaskSettings
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, distinct_names
from maml_ray.tasks.task_lookup import find_task


def test_the_repr_of_a_task_fits_a_line() -> None:
    assert repr(Task("forward", {"direction": 1.0})) == "Task('forward', direction=1.0)"
    dynamics = resolve_tasks(TaskSettings(name="hopper-random-dynamics"))
    assert repr(find_task(dynamics, {"mass/torso": 2.0})).endswith(
        "mass/leg=1.0, mass/foot=1.0, ... 34 parameters)"
    )


@pytest.mark.parametrize("name", ["HalfCheetahVelocity", "AntVelocity"])
def test_the_target_speed_has_one_name(name: str) -> None:
    env: Any = gym.make(f"maml_ray/{name}-v0", speed=2.0)
    assert env.unwrapped.goal.target == 2.0
    env.close()
    with pytest.raises(TypeError, match="target_speed is now called speed"):
        gym.make(f"maml_ray/{name}-v0", target_speed=2.0)


@pytest.mark.parametrize("name", sorted(TASK_FAMILIES))
def test_a_family_names_its_tasks_or_has_none_to_name(name: str) -> None:
    tasks = resolve_tasks(TaskSettings(name=name))
    for task in tasks.named_tasks():
        assert find_task(tasks, task.name) == find_task(tasks, dict(task.parameters)) == task


class Hand(StrEnum):
    LEFT = "left"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, 1),
        (0.5, 0.5),
        (True, True),
        ("reach-v3", "reach-v3"),
        (Hand.LEFT, "left"),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(-1), -1),
        (np.uint8(3), 3),
        (np.bool_(True), True),
        (np.str_("reach-v3"), "reach-v3"),
        (np.array(0.5, np.float32), 0.5),
        (np.array("push"), "push"),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(3), 3),
    ],
)
@pytest.mark.parametrize("form", [dict, tuple, list, lambda pairs: (list(pair) for pair in pairs)])
def test_parameters_become_what_json_keeps(value: Any, plain: Any, form: Any) -> None:
    task = Task("a", form([("goal", value)]) if form is not dict else {"goal": value})
    ((key, kept),) = task.parameters
    assert (key, kept, type(kept)) == ("goal", plain, type(plain))
    again = Task(task.name, json.loads(json.dumps(dict(task.parameters))))
    assert again == task == pickle.loads(pickle.dumps(task))
    assert hash(again) == hash(task)


@pytest.mark.parametrize(
    "parameters",
    [
        *(
            {"goal": value}
            for value in (float("nan"), np.inf, 10**400, Fraction(10**400), None, 1j, b"a", [1.0])
        ),
        *({"goal": value} for value in (np.zeros(1), torch.zeros(2), {"x": 1}, object(), "\ud800")),
        *({"goal": value} for value in (np.datetime64("2020-01-01"), np.array(None), ())),
        {1: 2},
        {"\ud800": 1},
        (("goal", 1), ("goal", 2)),
        (1.0,),
        ("ab",),
        ("goal", 1),
        (("goal",),),
        0.5,
        None,
        "goal",
    ],
)
def test_other_parameters_are_refused_when_the_task_is_made(parameters: Any) -> None:
    with pytest.raises(ValueError, match=r"parameters? .*of the task 'a'") as refusal:
        Task("a", parameters)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("name", [None, 3, "", "  ", b"a"])
def test_a_name_is_text(name: Any) -> None:
    with pytest.raises(ValueError, match="the name of a task must be text"):
        Task(name)


def test_a_name_takes_one_line() -> None:
    assert Task("north/east").name == "north/east"
    assert Task("süd-west 5°").name == "süd-west 5°"
    assert Task("a\nb\x1b[1m\ud800").name == "a\\nb\\x1b[1m\\ud800"
    assert type(Task(np.str_("a")).name) is str


def test_tasks_of_one_name_are_told_apart() -> None:
    first, second, other = (Task(name, {"x": x}) for name, x in zip("aab", (0, 1, 2), strict=True))
    assert distinct_names([first, second, first, other]) == {
        first: "a",
        second: "a (2)",
        other: "b",
    }
    taken = Task("a (2)", {"x": 3})
    assert distinct_names([first, second, taken])[second] == "a (3)"
