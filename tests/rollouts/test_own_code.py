"""Errors in a user's family or environment are one sentence, with file and line."""

from __future__ import annotations

import json
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Dict, Discrete, Sequence, Space

from maml_ray.common.errors import UserError
from maml_ray.common.signals import ExitOnSignal
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.envs.user_errors import UserCodeError, user_code
from maml_ray.evaluation.loading import load
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.persistence.run_dir import RunDir
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import initial_parameters
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.first_steps import try_first_steps
from maml_ray.rollouts.task_check import check_tasks
from maml_ray.runs.adapt import adapt_run
from maml_ray.serving.adaptation import handle_adapt_request
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy
from maml_ray.serving.settings import ServeSettings
from maml_ray.tasks.loading import record_own_tasks
from maml_ray.tasks.task import Task, TaskDistribution
from tests.rollouts.lines import PLANE, Line, Lines, lines_of, sampling
from tests.small_runs import run_of, settings


class OldApi(gym.Env[Any, Any]):
    """As written for gym before 0.26."""

    observation_space = action_space = PLANE

    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32)

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, {}


class HalfOldApi(OldApi):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}


class Mission(Space[Any]):
    """A space that a package defines, as MiniGrid's text."""


def making(make: Callable[[], Any]) -> type[Lines]:
    return type("OddLines", (Lines,), {"make_env": lambda self, task, **keywords: make()})


TASK = Task("a", {"goal": 1.0})
HERE = r"\(.*test_own_code.py, line \d+\)"
OWN_CODE = [
    (sampling(lambda self, rng, count: ()), rf"sample\(rng, \d+\) returns 0 tasks.* {HERE}"),
    (sampling(lambda self, rng, n: (self.task({"goal": 1}),)), "returns 1 tasks: return as many"),
    (sampling(lambda self, rng, count: "ab"), "returns a str: return a tuple of maml_ray.Task"),
    (sampling(lambda self, rng, count: 1 / 0), rf"raises ZeroDivisionError: .* {HERE}$"),
    (making(OldApi), rf"reset raises TypeError.* {HERE}: write reset\(self, \*, seed=None"),
    (making(HalfOldApi), rf"step returns 4 values, .* {HERE}: write reset\("),
    (making(lambda: gym.make("Nobody-v0")), rf"{HERE}: import the module that registers it"),
    (type("OddLines", (Lines,), {"make_env": lambda self, task: 1}), rf"'horizon' {HERE}$"),
    (making(lambda: None), "returns None: end it with 'return env'"),
    (making(lambda: Line), "returns a builtins.type, not a gymnasium.Env"),
    (sampling(lambda self, rng, n: [{"goal": 1}] * n), r"a dict among the tasks: write self.task"),
    (lines_of(reward=lambda self: np.zeros(2)), r"step \(.*\) returns the reward array.*number"),
    (
        making(lambda: gym.wrappers.TimeLimit(object(), 5)),  # type: ignore[arg-type]
        rf"Expected env to be .* {HERE}: write reset\(",
    ),
    (lines_of(observe=lambda self: np.zeros((1, 5))), r"shape \(1, 5\), but .* is \(2,\)"),
    (lines_of(reset=lambda self, **keywords: 1 / 0), rf"reset raises ZeroDivisionError: .* {HERE}"),
    (lines_of(observation_space=Dict({"x": PLANE})), "FlattenObservation"),
    (lines_of(observation_space=Discrete(3)), "FlattenObservation"),
    (lines_of(observation_space=Sequence(PLANE)), "cannot flatten them all, so make a vector"),
    (lines_of(observation_space=Mission()), "cannot flatten them all, so make a vector"),
    (
        making(
            lambda: gym.wrappers.FlattenObservation(lines_of(observation_space=Mission()).env())
        ),
        rf"NotImplementedError: .* {HERE}: Gymnasium cannot flatten a part",
    ),
    (lines_of(reward=lambda self: None), r"step \(.*\) returns the reward None: return a number"),
    (lines_of(close=lambda self: 1 / 0), rf"close raises ZeroDivisionError: .* {HERE}$"),
    (
        lines_of(reward=lambda self: 1 / 0, close=lambda self: hasattr(self, "x") and self.window),
        rf"step raises ZeroDivisionError: .* {HERE}$",
    ),
    (sampling(lambda self, rng, count: sys.exit(0)), rf"raises SystemExit: 0 {HERE}$"),
    (making(lambda: sys.exit("no licence")), rf"raises SystemExit: no licence {HERE}$"),
]


@pytest.mark.parametrize(("tasks", "problem"), OWN_CODE)
def test_errors_of_own_code_are_found_before_ray_starts(tasks: Any, problem: str) -> None:
    """By the same sentence in a check and in training; names the user's file, never ours."""
    settings = record_own_tasks(Settings(), tasks)
    with pytest.raises(SettingsError, match=f"^task.name = .* cannot be used: .*{problem}"):
        _try_as_training_does(settings, tasks())
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(check_tasks(tasks).problems[0])


def _try_as_training_does(settings: Settings, tasks: TaskDistribution) -> None:
    policy_spec(settings, tasks)
    try_first_steps(settings, tasks)


def test_batches_of_ones_own_are_tried_before_ray_starts() -> None:
    class NoBatch(Lines):
        def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> Any:
            return self.make_env(task, horizon=horizon)

    with pytest.raises(SettingsError, match=r"returns a TimeLimit, not a gymnasium\.vector"):
        try_first_steps(record_own_tasks(Settings(), NoBatch), NoBatch())
    try_first_steps(record_own_tasks(Settings(), Lines), Lines())
    try_first_steps(Settings(), NoBatch())  # named as a built-in family, which is not tried


def family(**members: Any) -> type[Lines]:
    return type("OddLines", (Lines,), members)


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        (
            family(make_vector_env=lambda self, task, **keywords: sys.exit(0)),
            rf"^make_vector_env raises SystemExit: 0 {HERE}$",
        ),
        (
            family(retarget=lambda self, env, task: sys.exit(0)),
            rf"^retarget raises SystemExit: 0 {HERE}$",
        ),
        (
            family(task=lambda self, parameters: sys.exit(0), sample=lambda s, r, n: (TASK,) * n),
            rf"^task\({{'goal': 1.0}}\) raises SystemExit: 0 {HERE}$",
        ),
        (
            family(named_tasks=lambda self: None),
            rf"^named_tasks\(\) returns a NoneType: return a tuple of maml_ray.Task {HERE}$",
        ),
        (
            family(named_tasks=lambda self: 1 / 0),
            rf"^named_tasks\(\) raises ZeroDivisionError: .* {HERE}$",
        ),
    ],
)
def test_errors_beyond_the_first_steps_are_found_by_a_check(tasks: Any, problem: str) -> None:
    """Each names the method that is to blame; a method that exits is no check that passes."""
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(check_tasks(tasks).problems[0])


def test_an_error_in_a_rollout_has_file_and_line() -> None:
    tasks = lines_of(reward=lambda self: 1 / 0)()
    settings = record_own_tasks(Settings(), tasks)
    spec = policy_spec(settings, tasks)
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)), None)
    with EnvCache(tasks, 5) as envs:
        env = envs.get(Task("a", {"goal": 1.0}), 2)
        with pytest.raises(UserCodeError, match=f"environment raises ZeroDivisionError.* {HERE}$"):
            collect(policy, env, 5, np.random.SeedSequence(0))


def test_an_error_that_cannot_be_sent_to_the_driver_is_sent_as_its_sentence() -> None:
    class Local(Exception):
        def __init__(self, code: int, lock: Any) -> None:
            super().__init__(code, lock)

    def fail() -> None:
        raise Local(3, threading.Lock())

    with pytest.raises(UserCodeError) as caught, user_code("step"):
        fail()
    sent = pickle.loads(pickle.dumps(caught.value))
    assert type(sent) is UserCodeError
    assert str(sent) == str(caught.value)
    assert str(sent).startswith("step raises Local: (3, <unlocked")


def test_a_signal_that_arrives_in_the_users_code_ends_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The deadline would end these tests.
    monkeypatch.setattr("maml_ray.common.signals.force_exit", lambda code: None)
    with pytest.raises(SystemExit), ExitOnSignal(), user_code("step"):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(UserCodeError, match="raises SystemExit: no licence"), user_code("step"):
        sys.exit("no licence")


USES: dict[str, Callable[[Any, Any], Any]] = {
    "collect": lambda run, wanted: load(run).collect(wanted),
    "adapt": lambda run, wanted: load(run).adapt(wanted),
    "task": lambda run, wanted: load(run).task(wanted),
    "adapt_run": lambda run, wanted: adapt_run(run.path, wanted),
    "served": lambda run, wanted: _raise(
        handle_adapt_request(
            json.dumps({"task": wanted}).encode(),
            lambda name: ServedPolicy(name, load(run)),
            limits=ServeSettings(run="unused").limits,
            max_env_steps=10_000,
        )
    ),
}


def _raise(answer: Any) -> None:
    assert isinstance(answer, ApiError)
    assert answer.status == 422
    raise answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    own = settings(f"{Lines.__module__}:Lines", meta_batch={"episodes": 1})
    return run_of(own, tmp_path_factory.mktemp("own") / "run")


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_misspelt_parameter_is_refused_wherever_a_task_is_named(use: Any, run: RunDir) -> None:
    with pytest.raises((UserError, ApiError), match=r"no parameter .*gaol.*did you mean .*goal"):
        use(run, {"gaol": 1})


def test_a_task_of_ones_own_making_is_compared_as_well(run: RunDir) -> None:
    assert load(run).collect(Task("mine", {"goal": 0.25})).episodes == 1
    with pytest.raises(UserError, match="no parameter 'gaol'"):
        load(run).collect(Task("mine", {"gaol": 0.25}))


@pytest.mark.parametrize("name", sorted(USES.keys() - {"task"}))  # which needs no environment
def test_an_error_of_the_environment_is_one_sentence_everywhere(
    name: str, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "reset", lambda self, **keywords: 1 / 0)
    with pytest.raises((UserError, ApiError), match=f"raises ZeroDivisionError: .* {HERE}"):
        USES[name](run, {"goal": 1})
