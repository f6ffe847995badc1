"""Tasks from a Gymnasium id and ranges of its keywords, as settings name them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from maml_ray.config.loading import dump_settings, load_settings, validate_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.tasks.gymnasium_tasks import GymnasiumTasks
from maml_ray.tasks.loading import resolve_tasks


class OwnSpace(spaces.Space[Any]):
    """As MiniGrid's text of a mission: Gymnasium cannot know how to flatten it."""


class Observes(gym.Env[Any, Any]):
    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space


PENDULUM = {"env": "Pendulum-v1", "ranges": {"g": [5, 15]}}


def tasks_of(**task: Any) -> Any:
    return resolve_tasks(validate_settings({"task": task}).task)


def test_a_range_is_a_keyword_of_the_environment() -> None:
    tasks = tasks_of(**PENDULUM)
    task = tasks.task({"g": 9.5})
    assert (task.name, task.parameters) == ("g 9.5", (("g", 9.5),))
    env = tasks.make_env(task, horizon=3)
    assert env.unwrapped.g == 9.5
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_a_fifth_of_the_first_range_is_held_out() -> None:
    """Cells are a fiftieth of the range; the middle one of every five is held out."""
    tasks = tasks_of(
        env="maml_ray/AntVelocity-v0", ranges={"speed": [0, 50], "control_cost": [0, 1]}
    )
    rng = np.random.default_rng(0)
    train, held_out = tasks.sample(rng, 1000), tasks.sample_held_out(rng, 1000)
    assert [key for key, _ in train[0].parameters] == ["speed", "control_cost"]
    cells = [{int(dict(task.parameters)["speed"]) % 5 for task in t} for t in (train, held_out)]
    assert cells == [{0, 1, 3, 4}, {2}]
    for drawn in (train, held_out):
        costs = [dict(task.parameters)["control_cost"] for task in drawn]
        assert 0 <= min(costs) < 0.01 < 0.99 < max(costs) < 1
    assert tasks.sample(np.random.default_rng(1), 3) == tasks.sample(np.random.default_rng(1), 3)


def test_options_are_the_same_for_all_tasks() -> None:
    tasks = tasks_of(
        env="HalfCheetah-v5", ranges={"ctrl_cost_weight": [0, 1]}, options={"frame_skip": 2}
    )
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    env = tasks.make_env(task, horizon=5).unwrapped
    assert env.frame_skip == 2
    assert env._ctrl_cost_weight == dict(task.parameters)["ctrl_cost_weight"]


def test_without_ranges_there_is_one_task() -> None:
    tasks = tasks_of(env="CartPole-v1")
    first, second = tasks.sample(np.random.default_rng(0), 2)
    assert first == second == tasks.task({})
    assert first.parameters == ()


@pytest.mark.parametrize(
    ("env", "observation"),
    [
        ("FrozenLake-v1", [1] + [0] * 15),  # Discrete(16)
        ("Blackjack-v1", None),  # Tuple(Discrete(32), Discrete(11), Discrete(2))
        ("CliffWalking-v1", [0] * 36 + [1] + [0] * 11),
    ],
)
def test_observations_that_are_no_vector_are_flattened(
    env: str, observation: list[int] | None
) -> None:
    tasks = tasks_of(env=env)
    first = tasks.make_env(tasks.task({}), horizon=5).reset(seed=0)[0]
    if observation is None:  # the player's sum, the dealer's card, a usable ace
        assert [first[:32].sum(), first[32:43].sum(), first[43:].sum()] == [1, 1, 1]
    else:
        np.testing.assert_array_equal(first, observation)


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), OwnSpace()])
def test_observations_that_gymnasium_cannot_flatten_are_left_to_the_sentence(space: Any) -> None:
    gym.register("Observes-v0", lambda **kwargs: Observes(space))
    try:
        tasks = tasks_of(env="Observes-v0")
        env = tasks.make_env(tasks.task({}), horizon=5)
    finally:
        gym.registry.pop("Observes-v0")
    assert env.observation_space == space


def test_an_environment_that_knows_no_render_mode_of_none() -> None:
    def make(render_mode: str = "rgb_array") -> Any:
        return gym.make("Pendulum-v1", render_mode=render_mode)

    creator: Any = make
    gym.register("Renders-v0", creator)
    try:
        tasks = tasks_of(env="Renders-v0")
        rendered = [
            tasks.make_env(tasks.task({}), horizon=5, **keywords).render_mode
            for keywords in ({}, {"render_mode": "human"})
        ]
    finally:
        gym.registry.pop("Renders-v0")
    assert rendered == ["rgb_array", "human"]


def test_a_module_that_registers_the_environment_is_imported(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registers_one.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OfAModule-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tasks = tasks_of(env="registers_one:OfAModule-v0", ranges={"g": [1, 2]})
    env: Any = tasks.make_env(tasks.task({"g": 1.5}), horizon=5)
    assert env.unwrapped.g == 1.5
    gym.registry.pop("OfAModule-v0")


def test_settings_of_an_environment_are_recorded_and_read_back(tmp_path: Any) -> None:
    settings = load_settings(
        overrides=["task.env=Pendulum-v1", "task.ranges={g: [5, 15]}", "run.name=pendulum"]
    )
    assert settings.task.name == "Pendulum-v1"
    (tmp_path / "settings.yaml").write_text(dump_settings(settings))
    assert load_settings(tmp_path / "settings.yaml") == settings
    assert isinstance(resolve_tasks(settings.task), GymnasiumTasks)


def test_an_environment_replaces_a_name_and_a_name_an_environment(tmp_path: Any) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(dump_settings(Settings()))  # which names the default's tasks
    env = {"task.env": "Pendulum-v1", "task.ranges": {"g": [5, 15]}}
    settings = load_settings(file, overrides=env)
    assert settings.task == load_settings(overrides=env).task
    assert Settings().replace(env).task == settings.task
    assert (
        settings.replace({"task.env": "CartPole-v1", "task.ranges": {}}).task.name == "CartPole-v1"
    )
    back = settings.replace("task.name", "point-navigation").task
    assert (back.name, back.env, back.ranges) == ("point-navigation", None, {})
    file.write_text(dump_settings(settings))
    assert load_settings(file, overrides=["task.name=point-navigation"]).task == back
    assert load_settings(preset="direction", overrides=env).task.env == "Pendulum-v1"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({**PENDULUM, "name": "point-navigation"}, "task.env = .*leave task.name = 'point-navig"),
        ({"ranges": {"g": [5, 15]}}, "task.ranges = .*set it to a Gymnasium id"),
        ({**PENDULUM, "ranges": {"g": [5, 5]}}, "task.ranges = .*low < high"),
        ({**PENDULUM, "ranges": {"g": [15]}}, r"task.ranges.g = \[15\].*write \[low, high\]"),
        ({**PENDULUM, "ranges": {"g": 5}}, r"task.ranges.g = 5.*write \[low, high\]"),
        ({**PENDULUM, "ranges": {"g": ["a", 5]}}, "task.ranges.g.0 = 'a'"),
        ({"env": "Pendulm-v1"}, "task.env = .*did you mean 'Pendulum-v1'"),
        ({"env": "Pendulum"}, "task.env = .*did you mean 'Pendulum-v1'"),
        ({"env": "no_module:Pendulum-v1"}, "no_module cannot be imported"),
        ({"env": "Qqqqqqqqqqqqq"}, "module:Name-v0"),
        ({"env": "Pendulum-v1", "ranges": {"gg": [1, 2]}}, "task.ranges.gg.*did you mean 'g'"),
        ({**PENDULUM, "options": {"mass": 1}}, r"task.options.mass.*\(there are: g\)"),
        ({**PENDULUM, "options": {"g": 1}}, "task.options.g exclude each other"),
        ({**PENDULUM, "options": {"render_mode": "human"}}, "task.options.render_mode .*set by"),
        ({"env": "Hopper-v5", "ranges": {"gravity": [1, 2]}}, "task.ranges.gravity is not a keyw"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(task: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tasks_of(**task)


def test_a_task_of_other_parameters_is_refused() -> None:
    tasks = tasks_of(**PENDULUM)
    with pytest.raises(ValueError, match='"g": <number>'):
        tasks.task({"gravity": 3.0})
    with pytest.raises(ValueError, match="finite"):
        tasks.task({"g": float("nan")})
