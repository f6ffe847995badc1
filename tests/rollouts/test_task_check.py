"""Each kind of mistake in a task distribution is reported in a sentence, and correct ones pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import SettingsError
from maml_ray.rollouts.first_steps import try_first_steps
from maml_ray.rollouts.task_check import check_tasks
from maml_ray.tasks.families.half_cheetah import HalfCheetahVelocityTasks
from maml_ray.tasks.families.point_navigation import PointNavigationTasks
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import Task, TaskDistribution
from tests.rollouts.lines import Line, Lines, lines_of, sampling

Floats = NDArray[np.float32]
COUNTER = count()


def parameter(value: Any) -> type[Lines]:
    return sampling(lambda self, rng, count: (Task("a", (("goal", value),)),) * count)


class Unrepeatable(Line):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        observation, info = super().reset(seed=seed)
        return observation + np.float32(next(COUNTER)), info


class Forgetful(Lines):
    """Resets less than everything, which shows in the second episode of a batch only."""

    class env(Line):
        drift = 0.0

        def reward(self) -> Any:
            self.drift += 0.001 if self.np_random_seed > 2**16 else 0.0  # not in check_env's
            return super().reward() + self.drift


class Diverging(Line):
    steps = 0

    def reward(self) -> Any:
        self.steps += 1
        return np.inf if self.steps > 10 else 0.0


class Stricter(Line):
    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(action)


class Ragged(Line):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"contacts": np.zeros(self.np_random.integers(1, 9))}


class SameStep(Lines):
    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        envs = [lambda: self.make_env(task, horizon=horizon)] * num_envs
        return SyncVectorEnv(envs, autoreset_mode=AutoresetMode.SAME_STEP)


class RaggedBatch(SameStep):
    env = Ragged


class SilentSameStep(SameStep):
    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        class Silent(VectorWrapper):
            def step(self, actions: Any) -> Any:
                return *super().step(actions)[:4], {}

        return Silent(super().make_vector_env(task, num_envs=num_envs, horizon=horizon))


class Deaf(Lines):
    """Its batch ignores seeds, as EnvPool's."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        class Unseeded(SyncVectorEnv):
            def reset(self, *, seed: Any = None, options: Any = None) -> Any:
                return super().reset(options=options)

        return Unseeded([lambda: self.make_env(task, horizon=horizon)] * num_envs)


class OtherSpaces(Lines):
    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        return gym.make_vec("Pendulum-v1", num_envs)


class DependentSpaces(Lines):
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        size = 1 if dict(task.parameters)["goal"] < 0.5 else 2
        space = Box(-np.inf, np.inf, (size,), np.float32)
        env = super().make_env(task, horizon=horizon)
        return gym.wrappers.TransformObservation(env, lambda observed: observed[:size], space)


class Doubles(Lines):
    """A batch of another type of numbers, as EnvPool's MuJoCo has."""

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        def make() -> Any:
            env = self.make_env(task, horizon=horizon)
            env.action_space = Box(-1.0, 1.0, (2,), np.float64)
            return gym.wrappers.DtypeObservation(env, np.float64)

        return SyncVectorEnv([make] * num_envs)


class LazyRetarget(PointNavigationTasks):
    def retarget(self, env: VectorEnv, task: Task) -> bool:
        return True


class OtherTask(Lines):
    def task(self, parameters: Any) -> Task:
        return Task("doubled", (("goal", 2.0 * parameters["goal"]),))


class RaisesValueError(Lines):
    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        raise ValueError("no license")


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        (int, "give a subclass of maml_ray.TaskDistribution"),
        (TaskDistribution, "cannot be created without arguments"),
        (
            sampling(lambda self, rng, count: (Task("a", (("goal", next(COUNTER)),)),) * count),
            "draw from rng alone",
        ),
        (parameter(float("inf")), r"sample\(rng, 20\) raises ValueError: .*got inf \(.*test_task_"),
        (OtherTask, "return the one that was asked for"),
        (RaisesValueError, "make_env of the task .* raises ValueError: no license"),
        (lines_of(action_space=Box(-1.0, 1.0, (2, 2), np.float32)), "Box with one axis"),
        (lines_of(action_space=Box(0, 3, (2,), np.int64)), "give a Box of float32 and round"),
        (lines_of(action_space=MultiDiscrete([3, 3])), "several choices to one Discrete of all"),
        (
            lines_of(observe=lambda self: np.zeros(3, np.float32)),
            r"reset \(.*lines.py, line \d+\) returns .* shape \(3,\)",
        ),
        (lines_of(reward=lambda self: [1.0, 2.0]), r"the reward \[1.0, 2.0\]: return a number"),
        (type("T", (Lines,), {"env": Diverging}), "not finite"),
        (type("T", (Lines,), {"env": Unrepeatable}), "draw all randomness from self.np_random"),
        (Forgetful, r"let reset restore the whole state"),
        (RaggedBatch, "each entry of info the same"),
        (SilentSameStep, "AutoresetMode.NEXT_STEP or DISABLED"),
        (Deaf, r"make_vector_env must draw all .*reset\(seed=...\), which EnvPool ignores"),
        (OtherSpaces, "other spaces than make_env"),
        (
            DependentSpaces,
            r"have different spaces: .*Box\(.* \(2,\), float32\), .* and observations .* \(1,\)",
        ),
        (LazyRetarget, "set everything that depends on the task"),
    ],
)
def test_a_problem_is_reported_in_one_sentence(tasks: Any, problem: str) -> None:
    check = check_tasks(tasks)
    assert not check.ok
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(check.problems[0])
    assert all("\n" not in sentence for sentence in check.problems)


@pytest.mark.parametrize(
    "tasks",
    [
        Lines,
        Lines(),
        HalfCheetahVelocityTasks(speed_range=(0.1, 0.4)),
        sampling(lambda self, rng, count: [self.task({"goal": g}) for g in rng.normal(size=count)]),
    ],
)
def test_tasks_of_ones_own_pass(tasks: Any) -> None:
    check = check_tasks(tasks)
    assert check.ok, check
    assert check.name == (tasks if isinstance(tasks, type) else type(tasks)).__name__
    assert not check.notes, check
    assert "20 different tasks in a sample of 20" in repr(check)


@pytest.mark.parametrize("name", TASK_FAMILIES)
def test_built_in_families_pass(name: str) -> None:
    check = check_tasks(validate_settings({"task": {"name": name}}))
    assert check.ok, check
    assert "make_vector_env equals make_env to the last bit" in check.passed
    assert "retarget switches a batch to another task" in check.passed


@pytest.mark.parametrize(("gravity", "allowed"), [([-12, 0], True), ([-12.1, -5], False)])
def test_a_range_beyond_what_the_environment_allows_is_found(
    gravity: list[float], allowed: bool
) -> None:
    """As LunarLander's, which no draw of a few tasks need meet."""

    def make(gravity: float, **keywords: Any) -> Any:
        assert -12 < gravity < 0, "gravity must be between -12 and 0"
        return Line()

    creator: Any = make
    gym.register("Lander-v0", creator)
    settings = validate_settings({"task": {"env": "Lander-v0", "ranges": {"gravity": gravity}}})
    try:
        check = check_tasks(settings)
        assert check.ok == allowed
        if allowed:
            try_first_steps(settings, resolve_tasks(settings.task))
        else:
            assert "make_env of the task 'gravity -12.1' raises AssertionError" in check.problems[0]
            with pytest.raises(SettingsError, match="gravity must be between -12 and 0"):
                try_first_steps(settings, resolve_tasks(settings.task))
    finally:
        gym.registry.pop("Lander-v0")


def test_several_problems_are_all_reported() -> None:
    class Two(Lines):
        env = Diverging

        def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
            return super().sample(rng, 1)

    problems: Sequence[str] = check_tasks(Two).problems
    assert [("return as many" in p, "not finite" in p) for p in problems] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_actions_are_within_bounds_which_they_may_miss_most_of_the_time() -> None:
    usual = check_tasks(type("T", (Lines,), {"env": Stricter}))
    assert usual.ok
    assert not usual.notes
    assert any("32% of what the untrained policy samples" in each for each in usual.passed)
    off = check_tasks(lines_of(action_space=Box(1.0, 2.0, (2,), np.float32)))
    assert off.ok
    assert "[1, 2], and is clipped: policy.action_bounds=rescale" in off.notes[0]


def test_what_may_not_be_meant_is_noted() -> None:
    ignored = check_tasks(lines_of(reward=lambda self: -abs(self.x)))
    assert ignored.ok
    assert "make_env may ignore the task" in ignored.notes[0]
    single = check_tasks(sampling(lambda self, rng, count: (self.task({"goal": 1}),) * count))
    assert single.ok
    assert "nothing to adapt to" in single.notes[0]
    assert "1 different task in a sample" in repr(single)


class Seedless(Line):
    """As Meta-World's environments: a goal that is fixed needs no generator."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.x = 0.0
        return self.observe(), {}


@pytest.mark.parametrize(
    ("env", "objection"),
    [
        (Seedless, "random number generator"),
        (
            type("Outside", (Line,), {"observation_space": Box(-0.5, 0.5, (2,), np.float32)}),
            "not within the observation space",
        ),
    ],
)
def test_what_gymnasium_objects_to_and_training_does_not_is_noted(env: Any, objection: str) -> None:
    check = check_tasks(type("T", (Lines,), {"env": env}))
    assert check.ok, check
    assert "check_env" in check.notes[0]
    assert objection in check.notes[0]


@pytest.mark.parametrize(
    "tasks",
    [
        SameStep,
        Doubles,
        type("T", (Lines,), {"env": Ragged}),
        lines_of(reward=lambda self: [1.0]),
        lines_of(reward=lambda self: np.array(1.0, np.float32)),
    ],
)
def test_what_a_batch_can_hold_is_no_problem(tasks: Any) -> None:
    check = check_tasks(tasks)
    assert check.ok, check


FarLines = lines_of(
    observation_space=Box(-np.inf, np.inf, (2,), np.float64),
    observe=lambda self: np.array([5e7 + self.x, 1.0]),
)


def test_observations_that_float32_does_not_resolve_are_noted_unless_they_are_normalized() -> None:
    for normalized in (False, True):
        settings = validate_settings(
            {
                "task": {"name": f"{__name__}:FarLines"},
                "policy": {"normalize_observations": normalized},
            }
        )
        check = check_tasks(settings)
        assert check.ok, check
        assert ["normalize_observations: true" in note for note in check.notes] == (
            [] if normalized else [True]
        )


class Reporting(Lines):
    class env(Line):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"distance": 1.0, "success": True, "text": "no"}


def test_an_info_that_no_environment_reports_is_noted() -> None:
    settings = validate_settings(
        {"task": {"name": f"{__name__}:Reporting", "info_metrics": ["success", "succes"]}}
    )
    check = check_tasks(settings)
    assert check.ok, check
    (note,) = check.notes
    assert "no environment reported succes in" in note
    assert note.endswith("the numbers distance, success")
