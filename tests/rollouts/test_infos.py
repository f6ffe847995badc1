"""What environments say in ``info``: metrics of what is asked for, and nothing of the rest."""

from __future__ import annotations

from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import SettingsError
from maml_ray.envs.user_errors import UserCodeError
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.step_reader import InfoNotANumber, read_info
from maml_ray.rollouts.trajectories import Trajectories, mean_info
from maml_ray.tasks.task import Task, TaskDistribution

HORIZON = 6
NOTHING = np.zeros(3, np.bool_)
COUNTER = count()  # so that the environments of a batch differ


class Counting(gym.Env[Any, Any]):
    """Says of step t what a function of t returns, and rewards by another."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, info: Any, reward: Any) -> None:
        self._info, self._reward = info, reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        np.random.RandomState(seed)  # as older environments make their generator
        self.t = 0
        return np.zeros(1, np.float32), {"start": [np.zeros(seed % 3)] if seed else None}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(1, np.float32), self._reward(self.t), False, False, self._info(self.t)


class CountingTasks(TaskDistribution):
    def __init__(self, info: Any, reward: Any = float) -> None:
        self._env = lambda: Counting(info, reward)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return (Task("one"),) * count

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        return gym.wrappers.TimeLimit(self._env(), horizon)


class Batch(VectorWrapper):
    """A batch whose infos are those of ``vector_info``, of each step."""

    vector_info: Any

    def step(self, actions: Any) -> Any:
        return *super().step(actions)[:4], self.vector_info


def make_policy() -> NumpyPolicy:
    spec = PolicySpec(1, 1, (4,), "tanh", -0.5, -3.0)
    return NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(1)))


def roll_out(tasks: TaskDistribution, *names: str, batch_info: Any = None) -> Trajectories:
    env: VectorEnv[Any, Any, Any]
    env = tasks.make_vector_env(Task("one"), num_envs=3, horizon=HORIZON)
    if batch_info is not None:
        env = Batch(env)
        env.vector_info = batch_info
    try:
        return collect(make_policy(), env, HORIZON, np.random.SeedSequence(0), info_metrics=names)
    finally:
        env.close()


ODD_INFOS = {
    "ragged": lambda t: {"contacts": np.zeros(next(COUNTER) % 4)},
    "of changing type": lambda t: {"mode": [None, "text", {"a": 1}, object()][next(COUNTER) % 4]},
    "huge": lambda t: {"id": 10**400},
    "not named by text": lambda t: {7: 1.0, "speed": np.zeros(3)},
    "nested": lambda t: {"a": {"b": np.zeros(t)}, "final_obs": t, "_x": 1},
    "none": lambda t: None,
}


@pytest.mark.parametrize("info", ODD_INFOS.values(), ids=ODD_INFOS)
def test_an_info_that_nobody_reads_ends_no_run(info: Any) -> None:
    data = roll_out(CountingTasks(info))
    assert data.mask.all()
    assert data.info_means == {}


@pytest.mark.parametrize(
    "reward",
    [float, int, np.float32, np.array, lambda t: [t], lambda t: np.array([t]), lambda t: t > 0],
)
def test_rewards_of_any_type_that_is_one_number(reward: Any) -> None:
    data = roll_out(CountingTasks(lambda t: {}, reward))
    expected = [float(np.sum(reward(t))) for t in range(1, HORIZON + 1)]
    np.testing.assert_array_equal(data.rewards, [expected] * 3)


def test_a_metric_is_the_mean_over_the_steps_that_report_it() -> None:
    def info(t: int) -> dict[str, Any]:
        said: dict[str, Any] = {"success": t > 4, "count": np.int64(t), "distance": np.array(0.5)}
        said["nan"] = np.nan if t % 2 else 2.0
        return said | ({"rare": t} if t == 3 else {}) | {"speed": np.float32(t)}

    data = roll_out(CountingTasks(info), "success", "rare", "nan", "count", "distance", "missing")
    means = {name: values.tolist() for name, values in data.info_means.items()}
    assert means.pop("success") == pytest.approx([2 / HORIZON] * 3)
    assert means == {
        "speed": [3.5] * 3,
        "rare": [3.0] * 3,
        "nan": [2.0] * 3,
        "count": [3.5] * 3,
        "distance": [0.5] * 3,
    }
    assert data.speeds is not None
    assert mean_info([data], "rare") == 3.0
    assert mean_info([data], "missing") is None


@pytest.mark.parametrize(
    ("entry", "mask", "values", "reported"),
    [
        (np.array([1, 2, 3]), None, [1, 2, 3], [1, 1, 1]),
        (np.array([[1.0], [2.0], [3.0]], np.float32), None, [1, 2, 3], [1, 1, 1]),
        (np.array([True, False, True]), [1, 0, 1], [1, 0, 1], [1, 0, 1]),
        (np.array([None, 2.0, [3.0]], object), None, [0, 2, 3], [0, 1, 1]),
        ([np.array(1.0), np.array([2.0]), None], None, [1, 2, 0], [1, 1, 0]),
        (np.array([np.nan, np.inf, 3.0]), None, [0, 0, 3], [0, 0, 1]),
        (np.array(["no", 2.0, 3.0], object), [0, 1, 1], [0, 2, 3], [0, 1, 1]),
    ],
)
def test_entries_of_any_shape_that_batches_give(
    entry: Any, mask: Any, values: Any, reported: Any
) -> None:
    infos = {"x": entry} if mask is None else {"x": entry, "_x": np.array(mask, np.bool_)}
    column = read_info(infos, "x", NOTHING, None)
    assert column is not None
    np.testing.assert_array_equal(column.reported, np.array(reported, np.bool_))
    np.testing.assert_array_equal(np.where(column.reported, column.values, 0), values)
    assert read_info(infos, "y", NOTHING, None) is None


def test_infos_of_a_last_step_as_an_array_of_dictionaries() -> None:
    """As before Gymnasium 1.0."""
    infos = {"final_info": np.array([{"x": 1.0}, None, {}], object), "x": np.full(3, 9.0)}
    ending = np.array([True, False, True])
    column = read_info(infos, "x", ending, AutoresetMode.SAME_STEP)
    assert column is not None
    assert column.values[0] == 1.0
    assert column.reported.tolist() == [True, True, False]


def test_what_is_asked_for_must_be_a_number_in_a_batch_of_ones_own() -> None:
    tasks, infos = CountingTasks(lambda t: {}), {"pose": np.zeros((3, 2)), "speed": ["a"] * 3}
    with pytest.raises(InfoNotANumber, match=r"info\['pose'\] is array\(\[0., 0.\]\): .*single"):
        roll_out(tasks, "pose", batch_info=infos)
    assert roll_out(tasks, batch_info=infos).info_means == {}
    env = gym.vector.SyncVectorEnv([lambda: Counting(ODD_INFOS["ragged"], float)] * 3)
    with pytest.raises(UserCodeError):  # in Gymnasium's code, which a batch of one's own calls
        collect(make_policy(), env, HORIZON, np.random.SeedSequence(0))


@pytest.mark.parametrize("name", ["", "_success", "a[b]", "<b>", "return", "x" * 61, 3])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(SettingsError, match=r"task\.info_metrics"):
        validate_settings({"task": {"info_metrics": [name]}})
