from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maml_ray.config.sections import TaskSettings
from maml_ray.envs.user_errors import UserCodeError
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, TaskDistribution, draw_tasks
from maml_ray.tasks.task_lookup import find_task
from tests.tasks.families import PendulumTasks

FORWARD = Task("forward", (("direction", 1.0),))


@pytest.mark.parametrize("wanted", ["forward", {"direction": 1}, FORWARD])
@pytest.mark.parametrize("observe", [False, True])
def test_a_task_is_found_by_name_by_parameters_and_as_it_is(wanted: Any, observe: bool) -> None:
    family = TaskSettings(name="half-cheetah-direction", observe_parameters=observe)
    assert find_task(resolve_tasks(family), wanted) == FORWARD


def test_a_name_that_a_user_chose_is_kept() -> None:
    mine = Task("fast", (("speed", 1.5),))
    assert find_task(resolve_tasks(TaskSettings(name="half-cheetah-velocity")), mine) is mine


@pytest.mark.parametrize(
    ("family", "wanted", "message"),
    [
        (
            "half-cheetah-direction",
            "foward",
            "there are 'forward' and 'backward', not 'foward'; did you mean 'forward'?",
        ),
        ("half-cheetah-direction", {"direction": 0.5}, 'a task is {"direction": 1} or'),
        ("half-cheetah-direction", Task("forward", (("direction", 2.0),)), "a task is"),
        ("half-cheetah-direction", 1, "a task is a name, a dictionary of parameters or a "),
        ("half-cheetah-backward", "forward", "there is 'backward', not 'forward'"),
        ("half-cheetah-backward", FORWARD, "there is one task"),
        ("half-cheetah-velocity", "fast", "no names such as 'fast', but parameters: {\"speed\": "),
        ("point-navigation", "goal", "no names such as 'goal', but parameters: {\"x\": "),
        ("hopper-random-dynamics", "heavy", '"mass/torso": '),
        ("hopper-random-dynamics", Task("a", (("weight", 2.0),)), "'weight' is not among"),
    ],
)
def test_a_task_that_the_family_lacks_is_refused(family: str, wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"there|task") as refusal:
        find_task(resolve_tasks(TaskSettings(name=family)), wanted)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 300


class Goals(PendulumTasks):
    """Of indices, words and speeds, drawn as lists; ``task`` is the inherited one."""

    def sample(self, rng: np.random.Generator, count: int) -> Any:
        values = {"index": np.int64(3), "word": np.str_("push"), "speed": np.float32(0.5)}
        return [self.task(values) for _ in range(count)]


def test_a_task_is_found_as_the_family_samples_it() -> None:
    (sampled,) = draw_tasks(Goals(), np.random.default_rng(0), 1)
    assert sampled.name == "index 3, word push, speed 0.5"
    found = find_task(Goals(), {"speed": 1, "word": "push", "index": 3.0})
    assert repr(found.parameters) == "(('index', 3), ('word', 'push'), ('speed', 1.0))"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"index": 1, "wrod": "push", "speed": 1},
            "'wrod'; one of them is {",
        ),
        ({"index": 1, "word": "push"}, "the parameter 'speed' is missing; one of its tasks is {"),
        ({}, "the parameter 'index' is missing"),
        ({"index": "1", "word": "push", "speed": 1}, "index is a number such as 3, got '1'"),
        ({"index": 1, "word": 2, "speed": 1}, "word is text such as 'push', got 2"),
        ({"index": 1, "word": "push", "speed": float("inf")}, "finite"),
        (Task("a", (("goal", 1.0),)), "no parameter 'goal'"),
    ],
)
def test_parameters_that_no_task_has_are_refused(wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"parameter") as refusal:
        find_task(Goals(), wanted)
    assert message in str(refusal.value)


def test_an_error_of_a_family_names_its_line() -> None:
    class Broken(Goals):
        def task(self, parameters: Any) -> Task:
            return super().task({"goal": parameters["goal"]})

    with pytest.raises(UserCodeError, match=r"raises KeyError: 'goal' \(.*lookup.py, line"):
        find_task(Broken(), {"x": 1})


def _all_families() -> list[TaskDistribution]:
    return [resolve_tasks(TaskSettings(name=name)) for name in TASK_FAMILIES]


def test_sampled_tasks_are_found_by_their_parameters() -> None:
    for tasks in [*_all_families(), PendulumTasks()]:
        for task in draw_tasks(tasks, np.random.default_rng(5), 3, held_out=True):
            assert find_task(tasks, dict(task.parameters)).parameters == task.parameters
