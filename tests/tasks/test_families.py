"""Requirements on all families; each family's own module tests what is special to it."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import warnings
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import TaskSettings
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker
from maml_ray.policies.spec import PolicyParameters, initial_parameters
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, TaskDistribution
from maml_ray.tasks.task_observation import VectorParametersInObservation
from tests.envs.comparison import assert_same_reset, assert_same_step
from tests.tasks.families import FAMILIES, Family, random_actions

HORIZON = 60
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def singles(
    tasks: TaskDistribution, task: Task, mode: AutoresetMode, horizon: int = HORIZON
) -> SyncVectorEnv:
    def make() -> gym.Env[Any, Any]:
        return tasks.make_env(task, horizon=horizon)

    return SyncVectorEnv([make] * 3, autoreset_mode=mode)


def batch(tasks: TaskDistribution, task: Task, mode: AutoresetMode, horizon: int = HORIZON) -> Any:
    env = tasks.make_vector_env(task, num_envs=3, horizon=horizon)
    env.autoreset_mode = mode  # type: ignore[attr-defined]
    env.metadata["autoreset_mode"] = mode
    return env


def can_render(family: Family) -> bool:
    env = gym.make(family.env_id, render_mode="rgb_array")
    try:
        env.reset(seed=0)
        return env.render() is not None
    except Exception:
        return False
    finally:
        env.close()


def test_importing_the_package_registers_all_and_imports_no_simulator() -> None:
    program = (
        "import sys, gymnasium, maml_ray\n"
        f"assert {{*{sorted(family.env_id for family in FAMILIES)}}} <= set(gymnasium.registry)\n"
        "assert not {'mujoco', 'torch', 'ray', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_family_is_listed() -> None:
    assert {family.name for family in FAMILIES} == set(TASK_FAMILIES)
    assert {family.single for family in FAMILIES} == {
        family.env for family in TASK_FAMILIES.values()
    }


@every_family
def test_a_batch_that_nobody_uses_gives_its_memory_back_at_once(family: Family) -> None:
    """Not when Python next looks for cycles, which in a large process may be minutes later."""
    tasks, (task, _) = family.tasks(), family.two_tasks()
    batched = batch(tasks, task, AutoresetMode.NEXT_STEP)
    batched.reset(seed=7)
    batched.step(batched.action_space.sample())
    batched.close()
    # Navigation has no simulations beside the batch.
    parts = [weakref.ref(each) for each in (batched, getattr(batched, "simulations", batched))]
    gc.disable()
    try:
        del batched
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


@every_family
def test_a_batch_equals_single_environments(family: Family) -> None:
    """Across ends of both kinds, with autoreset."""
    tasks, (task, _) = family.tasks(), family.two_tasks()
    batched = batch(tasks, task, AutoresetMode.NEXT_STEP)
    single = singles(tasks, task, AutoresetMode.NEXT_STEP)
    assert batched.observation_space == single.observation_space
    assert batched.action_space == single.action_space
    assert_same_reset(batched.reset(seed=7), single.reset(seed=7))
    terminations = truncations = steps_with_speed = 0
    for actions in random_actions(batched, 3 * HORIZON):
        expected = single.step(actions)
        assert_same_step(batched.step(actions), expected)
        terminations += int(expected[2].sum())
        truncations += int(expected[3].sum())
        steps_with_speed += "speed" in expected[4]
    assert terminations > 0 or not family.falls
    assert truncations > 0 or family.falls
    assert (steps_with_speed > 100) == family.speed
    batched.close()
    single.close()


@every_family
def test_a_batch_turned_to_another_task_equals_new_single_environments(family: Family) -> None:
    tasks, (task, other) = family.tasks(), family.two_tasks()
    batched = batch(tasks, other, AutoresetMode.DISABLED)
    batched.reset(seed=0)
    for actions in random_actions(batched, 20):
        batched.step(actions)
    assert tasks.retarget(batched, task)
    single = singles(tasks, task, AutoresetMode.DISABLED, horizon=10)
    batched._max_episode_steps = 10
    assert_same_reset(batched.reset(seed=3), single.reset(seed=3))
    for actions in random_actions(batched, 40):
        expected = single.step(actions)
        assert_same_step(batched.step(actions), expected)
        done = expected[2] | expected[3]
        if done.any():
            options = {"reset_mask": done.copy()}
            mine, theirs = batched.reset(options=options), single.reset(options=dict(options))
            assert_same_reset(mine, theirs)
    batched.close()
    single.close()


@every_family
def test_a_rollout_actor_does_not_care_which_task_came_before(family: Family) -> None:
    settings = validate_settings(
        {
            "task": {"name": family.name, "options": dict(family.options), "horizon": 80},
            "meta_batch": {"episodes": 3},
        }
    )
    fresh, used = RolloutWorker(settings), RolloutWorker(settings)
    task, other = family.two_tasks()
    parameters = initial_parameters(fresh.spec, np.random.default_rng(0))
    published = PolicyParameters(0, parameters, None)
    used.roll_out(published, Assignment(0, 0, other, 0))
    first, again = (
        worker.roll_out(published, Assignment(0, 1, task, 0))[0].query for worker in (fresh, used)
    )
    for name in ("observations", "actions", "rewards", "mask", "terminated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    assert (first.speeds is not None) == family.speed
    assert first.mask[:, 0].all()
    fresh.close()
    used.close()


@every_family
def test_gymnasium_makes_it_alone_and_as_a_batch(family: Family) -> None:
    batched = gym.make_vec(family.env_id, num_envs=2)
    single = gym.make_vec(family.env_id, num_envs=2, vectorization_mode="sync")
    assert type(batched.unwrapped).__name__ == family.single + "Vector"
    assert batched.metadata == single.metadata
    assert batched.spec is not None
    assert batched.spec.id == family.env_id
    assert_same_reset(batched.reset(seed=0), single.reset(seed=0))
    for actions in random_actions(batched, 5):
        assert_same_step(batched.step(actions), single.step(actions))
    batched.close()
    single.close()
    with pytest.raises(ValueError, match="does not render"):
        gym.make_vec(family.env_id, num_envs=2, render_mode="rgb_array")


@every_family
def test_gymnasium_finds_nothing_to_warn_of(family: Family) -> None:
    tasks, (task, _) = family.tasks(), family.two_tasks()
    # In every render mode where that is quick; of MuJoCo's, the half-cheetah's own test has them.
    quick = family.name == "point-navigation"
    env = tasks.make_env(task, horizon=5, render_mode="rgb_array" if quick else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=not quick)
    env.close()


@every_family
def test_a_frame_can_be_rendered(family: Family) -> None:
    if not can_render(family):
        assert family.name != "point-navigation"  # plain numpy
        pytest.skip("no off-screen rendering here")
    tasks, (task, _) = family.tasks(), family.two_tasks()
    env = tasks.make_env(task, horizon=5, render_mode="rgb_array")
    env.reset(seed=0)
    frame = np.asarray(env.render())
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 0
    env.close()


@every_family
def test_pickling_keeps_the_arguments(family: Family) -> None:
    tasks, (task, _) = family.tasks(), family.two_tasks()
    env = tasks.make_env(task, horizon=5).unwrapped
    copy = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])
    for _ in range(3):
        action = np.full(env.action_space.shape or (), 0.05, np.float32)
        copied, original = copy.step(action), env.step(action)
        np.testing.assert_array_equal(copied[0], original[0])
        assert copied[1:] == original[1:]
    env.close()
    copy.close()


@every_family
def test_stable_baselines3_takes_it(family: Family) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The papers' point moves by up to 0.1 a step, which is not the range that SB3 likes best.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized Box action space")
        sb3_check_env(gym.make(family.env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", sorted(TASK_FAMILIES))
def test_training_and_held_out_tasks(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    tasks = family.tasks()

    @settings(max_examples=15)
    @given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(1, 12))
    def check(seed: int, other: int, count: int) -> None:
        trained = tasks.sample(np.random.default_rng([0, seed]), count)
        assert trained == tasks.sample(np.random.default_rng([0, seed]), count)
        held_out = tasks.sample_held_out(np.random.default_rng([1, other]), count)
        assert len(trained) == len(held_out) == count
        if family.held_out_is_disjoint:
            assert not set(trained) & set(held_out)
        for task in (*trained, *held_out):
            assert tasks.task(dict(task.parameters)).parameters == task.parameters

    check()


@pytest.mark.parametrize("name", sorted(TASK_FAMILIES))
def test_wrong_parameters_are_refused(name: str) -> None:
    tasks = resolve_tasks(TaskSettings(name=name))
    parameters = dict(tasks.sample(np.random.default_rng(0), 1)[0].parameters)
    with pytest.raises(ValueError, match=r"there is|a task is|is not among"):
        tasks.task({**parameters, "color": 1.0})
    for key in parameters:
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(ValueError, match=r"finite|a task is"):
                tasks.task({**parameters, key: value})
        break


@every_family
def test_a_policy_can_observe_its_task(family: Family) -> None:
    if family.name == "half-cheetah-backward":
        pytest.skip("it has no parameters")
    plain, observing, (task, other) = (
        family.tasks(),
        family.tasks(observe_parameters=True),
        family.two_tasks(),
    )
    env: Any = observing.make_vector_env(other, num_envs=3, horizon=10)
    assert isinstance(env, VectorParametersInObservation)
    env.reset(seed=0)
    assert observing.retarget(env, task)
    single = singles(observing, task, AutoresetMode.DISABLED)
    without = plain.make_vector_env(task, num_envs=3, horizon=10)
    assert env.observation_space == single.observation_space
    mine: Any = env.reset(seed=4)
    assert_same_reset(mine, single.reset(seed=4))
    values = [value for _, value in task.parameters]
    expected = without.reset(seed=4)[0]
    np.testing.assert_array_equal(mine[0], np.hstack([expected, np.tile(values, (3, 1))]))
    for actions in random_actions(env, 5):
        mine = env.step(actions)
        assert_same_step(mine, single.step(actions))
        np.testing.assert_array_equal(mine[0][:, : -len(values)], without.step(actions)[0])
    for opened in (env, single, without):
        opened.close()
