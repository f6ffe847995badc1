"""The page on tasks: its code does what it says, its table lists the families and their options."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from maml_ray.cli.docs import read_page
from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import TaskSettings
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker
from maml_ray.policies.spec import PolicyParameters, initial_parameters
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from tests.docs.pages import python_block

PAGE = read_page("tasks")


def code(marker: str) -> str:
    """The page's one block of Python that has ``marker`` in it."""
    return python_block("tasks.md", marker)


def test_a_task_of_ones_own_is_rolled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(code("class PendulumTasks").splitlines()) <= 25
    (tmp_path / "my_tasks.py").write_text(code("class PendulumTasks"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    settings = validate_settings(
        {
            "task": {
                "name": "my_tasks:PendulumTasks",
                "options": {"gravity": [1, 20]},
                "horizon": 6,
            },
            "meta_batch": {"episodes": 2},
        }
    )
    worker = RolloutWorker(settings)
    first, second = worker.tasks.sample(np.random.default_rng(0), 2)
    assert first != second
    assert 1.0 < dict(first.parameters)["g"] < 20.0
    parameters = initial_parameters(worker.spec, np.random.default_rng(0))
    published = PolicyParameters(0, parameters, None)
    for task in (first, second):
        rollouts, _ = worker.roll_out(published, Assignment(0, 0, task, 0))
        assert rollouts.query.observations.shape == (2, 6, 3)
        assert rollouts.query.mask.all()
        env: Any = worker._envs.get(task, 2)
        assert [single.unwrapped.g for single in env.envs] == [dict(task.parameters)["g"]] * 2
    worker.close()


def test_a_batch_of_ones_own_equals_gymnasiums() -> None:
    names: dict[str, Any] = {}
    exec(code("class Swimmers"), names)
    mine = names["swimmers"]
    assert mine.num_envs == 20
    theirs = gym.make_vec("Swimmer-v5", 20, vectorization_mode="sync")
    np.testing.assert_array_equal(mine.reset(seed=0)[0], theirs.reset(seed=0)[0])
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 20, 2)).astype(np.float32)
    for action in actions:
        observations, rewards, _, _, infos = mine.step(action)
        expected = theirs.step(action)
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_allclose(rewards, expected[1], atol=1e-9)
        np.testing.assert_array_equal(infos["speed"], expected[4]["x_velocity"])
    mine.close()
    theirs.close()
    assert AutoresetMode("Disabled") is AutoresetMode.DISABLED  # as the text spells it
    assert 'autoreset_mode="Disabled"' in PAGE


def test_the_table_names_every_family_and_its_options() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\|([^|]*)\|$", PAGE, re.M)
    assert [name for name, _ in rows] == list(TASK_FAMILIES)
    listed: list[str] = []
    for name, options in rows:
        own = re.findall(r"`([a-z_]+)`", options)
        listed = [*(listed if "the same" in options else []), *own]
        kept = {"control_cost": 0.1, "torso_position": True, "contact_forces": True}
        kept["survival_bonus"] = 1.0
        ranges = {"speed_range": [0.5, 1.0], "goal_range": [0.5, 1.0], "log_scale_limit": 1.0}
        values = {option: {**kept, **ranges}[option] for option in listed}
        assert resolve_tasks(TaskSettings(name=name, options=values))
        with pytest.raises(ValueError, match=r"there are: [a-z_, ]+\)") as caught:
            resolve_tasks(TaskSettings(name=name, options={"no_such_option": 1}))
        result = str(caught.value).partition("there are: ")[2].rstrip(")").split(", ")
        assert sorted(result) == sorted(listed), name


def test_the_numbers_of_multipliers_are_correct() -> None:
    for name, count in (("walker2d", 58), ("hopper", 34)):
        tasks = resolve_tasks(TaskSettings(name=f"{name}-random-dynamics"))
        (task,) = tasks.sample(np.random.default_rng(0), 1)
        assert len(task.parameters) == count
        assert f"{count} multipliers" in PAGE


def test_the_environment_named_in_the_text_can_be_made() -> None:
    env: Any = gym.make("maml_ray/AntVelocity-v0", speed=2.0)
    assert env.unwrapped.goal.target == 2.0
    env.close()
