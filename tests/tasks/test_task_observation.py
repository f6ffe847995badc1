"""What `task.observe_parameters` rejects, and what it passes on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import TaskSettings
from maml_ray.config.settings import SettingsError
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution
from maml_ray.tasks.task_observation import ObservedParametersTasks
from tests.tasks.families import PendulumTasks


def observing(name: str) -> TaskDistribution:
    return resolve_tasks(TaskSettings(name=name, observe_parameters=True))


class Grid(PendulumTasks):
    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return gym.make("FrozenLake-v1")


def test_a_family_without_parameters_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"observe_parameters.*'half-cheetah-backward'.*no par"):
        observing("half-cheetah-backward")


def test_the_policy_sees_the_parameters() -> None:
    settings = validate_settings(
        {"task": {"name": "point-navigation", "observe_parameters": True, "horizon": 5}}
    )
    assert policy_spec(settings).observation_size == 4


def test_sampling_is_the_distributions_own() -> None:
    plain = resolve_tasks(TaskSettings(name="point-navigation"))
    observed = observing("point-navigation")
    for kind in ("sample", "sample_held_out"):
        draws = [getattr(tasks, kind)(np.random.default_rng(3), 4) for tasks in (plain, observed)]
        assert draws[0] == draws[1]
    assert observed.task({"x": 0.1, "y": 0.2}) == plain.task({"x": 0.1, "y": 0.2})


def test_a_custom_batch_observes_them_and_is_not_retargeted() -> None:
    tasks = ObservedParametersTasks(PendulumTasks(), "pendulum")
    first, second = tasks.sample(np.random.default_rng(0), 2)
    env = tasks.make_vector_env(first, num_envs=2, horizon=3)
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, 4)
    assert observations.dtype == np.float32  # as the environment's own
    np.testing.assert_array_equal(observations[:, 3], np.float32(first.parameters[0][1]))
    assert env.step(np.zeros((2, 1), np.float32))[0].shape == (2, 4)
    assert not tasks.retarget(env, second)
    env.close()


def test_parameters_left_out_are_the_distributions_and_others_are_refused() -> None:
    tasks = observing("hopper-random-dynamics")
    env = tasks.make_env(Task("heavy", (("mass/torso", 2.0),)), horizon=3)
    observation = env.reset(seed=0)[0]
    assert observation[11] == 2.0  # after the hopper's own
    assert (observation[12:] == 1.0).all()
    env.close()
    pendulum = ObservedParametersTasks(PendulumTasks(), "pendulum")
    with pytest.raises(ValueError, match="must have the parameters g to be observed"):
        pendulum.values(Task("?", (("length", 1.0),)))


def test_only_flat_observations_can_be_added_to() -> None:
    tasks = ObservedParametersTasks(Grid(), "grid")
    with pytest.raises(ValueError, match="flat Box observation only, got Discrete"):
        tasks.make_env(tasks.sample(np.random.default_rng(0), 1)[0], horizon=3)
