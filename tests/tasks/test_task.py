from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from maml_ray.config.settings import TaskSettings
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, find_task

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


def test_the_repr_of_a_task_fits_a_line() -> None:
    assert repr(FORWARD) == "Task('forward', direction=1.0)"
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
