"""Check a task distribution: sample it, and roll out its environments as training does."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv

from maml_ray.common.errors import UserError
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import (
    PolicySpec,
    bounds_warning,
    initial_parameters,
    shares_beyond_bounds,
)
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.loading import (
    OwnTasks,
    describe_user_error,
    record_own_tasks,
    resolve_tasks,
)
from maml_ray.tasks.task import Task, TaskDistribution, find_task

_TASKS = 20  # sampled
_STEPS, _EPISODES = 20, 2  # of each rollout: enough to see a difference, and quick


@dataclass(frozen=True)
class TaskCheck:
    """What :func:`check_tasks` found.

    Attributes:
        name: name of the task distribution.
        passed: what was checked and is as training needs it.
        notes: what works, but may not be meant.
        problems: what training would fail at or get wrong, with the remedy.
    """

    name: str
    passed: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __repr__(self) -> str:
        lines = [f"tasks of {self.name}: {'no problems' if self.ok else 'cannot be trained on'}"]
        for label, sentences in (
            ("problem", self.problems),
            ("note", self.notes),
            ("ok", self.passed),
        ):
            lines += [f"  {label + ':':9}{sentence}" for sentence in sentences]
        return "\n".join(lines)


def check_tasks(tasks: OwnTasks | Settings) -> TaskCheck:
    """Check a task distribution before training on it; takes about a second.

    Samples tasks, creates an environment, runs Gymnasium's ``check_env`` on it, and rolls out a
    few steps of a batch with an untrained policy, for two tasks. Needs neither PyTorch nor Ray.

    Args:
        tasks: a subclass of :class:`TaskDistribution`, an instance of one, or settings that name
            tasks.

    Returns:
        What was found, in sentences; its ``repr`` lists them.

    Raises:
        SettingsError: ``tasks`` is none of these.
    """
    if not isinstance(tasks, Settings | TaskDistribution | type):
        raise SettingsError(
            f"tasks = {tasks!r:.80} is not allowed: write check_tasks(MyTasks), with a subclass of "
            "maml_ray.TaskDistribution or an instance of one, or give settings"
        )
    own = None if isinstance(tasks, Settings) else tasks
    findings = _Findings()
    name = own.__name__ if isinstance(own, type) else type(own).__name__
    try:
        if isinstance(tasks, Settings):
            settings, name = tasks, tasks.task.name
        else:
            settings = record_own_tasks(Settings(), own)
        distribution = resolve_tasks(settings.task, own)
    except SettingsError as error:
        findings.problems.append(str(error))
        return findings.summary(name)
    horizon = min(settings.task.horizon, _STEPS)
    try:
        drawn = _check_sampling(distribution, findings)
        spec = _check_env(distribution, drawn[0], settings, horizon, findings)
        if spec is not None:
            policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)), None)
            _check_batches(_Rollouts(distribution, policy, horizon), drawn, findings)
    except _Stopped:
        pass
    return findings.summary(name)


class _Stopped(Exception):
    """The checks after this one would fail as well."""


class _Findings:
    def __init__(self) -> None:
        self.passed: list[str] = []
        self.notes: list[str] = []
        self.problems: list[str] = []

    def expect(self, holds: bool, problem: str) -> None:
        """Record ``problem`` unless the condition holds."""
        if not holds:
            self.problems.append(problem)

    def require(self, holds: bool, problem: str) -> None:
        """Stop with ``problem`` unless the condition holds."""
        self.expect(holds, problem)
        if not holds:
            raise _Stopped

    def call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the user's code; stop with a problem if it raises."""
        try:
            return function(*args, **kwargs)
        except _Stopped:
            raise
        except UserError as error:
            self.problems.append(f"{what}: {error}")
        except Exception as error:  # a user's class may raise anything
            self.problems.append(f"{what} raises {describe_user_error(error)}{_remedy(error)}")
        raise _Stopped

    def summary(self, name: str) -> TaskCheck:
        return TaskCheck(name, tuple(self.passed), tuple(self.notes), tuple(self.problems))


def _remedy(error: Exception) -> str:
    """Return a remedy for what environments often raise in a batch; empty if none is known."""
    functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "_add_info" in functions:
        return ": keep the type and shape of each entry of info the same"
    if "step" in functions and isinstance(error, AssertionError):
        return ": if it is because of the action, set policy.action_bounds to clip or rescale"
    return ""


def _check_sampling(tasks: TaskDistribution, findings: _Findings) -> Sequence[Task]:
    """Check both ways to sample; return the training tasks."""
    drawn = _draw("sample", tasks.sample, 0, findings)
    held_out = _draw("sample_held_out", tasks.sample_held_out, 1, findings)
    different = {task.parameters for task in drawn}
    shared = different & {task.parameters for task in held_out}
    plural = "" if len(different) == 1 else "s"
    findings.passed.append(
        f"{len(different)} different task{plural} in a sample of {_TASKS}, such as "
        f"{drawn[0].name!r}; {len(shared) or 'none'} of them among {_TASKS} held-out ones"
    )
    if len(different) == 1:
        findings.notes.append("all tasks sampled are the same: there is nothing to adapt to")
    return drawn


def _draw(name: str, sample: Callable[..., Any], seed: int, findings: _Findings) -> Sequence[Task]:
    call = f"{name}(rng, {_TASKS})"
    drawn: Sequence[Task]
    drawn, again = (
        findings.call(call, sample, np.random.default_rng(seed), _TASKS) for _ in range(2)
    )
    is_tasks = isinstance(drawn, Sequence) and all(isinstance(task, Task) for task in drawn)
    findings.require(
        is_tasks, f"{call} returns a {type(drawn).__name__}: return a tuple of maml_ray.Task"
    )
    few = f"{call} returns {len(drawn)} tasks: return as many as asked for"
    findings.expect(len(drawn) == _TASKS, few)
    findings.require(len(drawn) > 0, few)
    odd = next((task for task in drawn if not _are_pairs(task.parameters)), None)
    findings.require(
        odd is None,
        f"{call}: the parameters of a task are pairs in a tuple: write self.task({{...}}), "
        "or Task(name, (('goal', 0.5),))",
    )
    findings.call("hash(task)", lambda: {hash(task) for task in drawn})
    findings.expect(
        tuple(drawn) == tuple(again),
        f"{call} draws other tasks from an equal generator: draw from rng alone",
    )
    problems = (_parameter_problem(task, *item) for task in drawn for item in task.parameters)
    first = next(filter(None, problems), None)
    findings.expect(first is None, f"{call}: {first}")
    return drawn


def _are_pairs(parameters: Any) -> bool:
    return isinstance(parameters, tuple) and all(
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        for item in parameters
    )


def _parameter_problem(task: Task, key: str, value: Any) -> str | None:
    """Return why a parameter cannot be saved and compared, or None."""
    what = f"the parameter {key!r} of the task {task.name!r} is"
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        return f"{what} {value!r:.60}: give the tasks numbers, and put text into their names"
    if not isinstance(value, int | float):
        return f"{what} a {type(value).__name__}: write float({key})"
    return None if math.isfinite(value) else f"{what} {value}"


def _check_env(
    tasks: TaskDistribution, task: Task, settings: Settings, horizon: int, findings: _Findings
) -> PolicySpec | None:
    """Check one environment; return the policy's sizes for it."""
    env = findings.call(
        f"make_env of the task {task.name!r}", tasks.make_env, task, horizon=horizon
    )
    findings.require(
        isinstance(env, gym.Env),
        f"make_env returns a {type(env).__module__}.{type(env).__name__}, not a gymnasium.Env: "
        "derive it from gymnasium.Env, or wrap an older environment (gymnasium.farama.org, Shimmy)",
    )
    try:
        spec = PolicySpec.from_spaces(
            settings.policy, env.observation_space, env.action_space, tasks.action_bounds
        )
    except ValueError as error:
        env.close()
        findings.problems.append(str(error))
        raise _Stopped from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recommendations, such as bounds of observations
            check_env(env, skip_render_check=True, skip_close_check=True)
        env.reset(seed=0)
        reward = env.step(env.action_space.sample())[1]
    except Exception as error:  # assertions, and whatever the environment raises
        message = " ".join(str(error).split())[:300] or type(error).__name__
        findings.problems.append(f"Gymnasium's check_env: {message}")
        raise _Stopped from None
    finally:
        env.close()
    findings.require(
        np.ndim(reward) == 0, f"step returns the reward {reward!r:.60}: return a number"
    )
    if (warning := bounds_warning(spec)) is not None:
        findings.notes.append(warning)
    elif spec.action_bounds is not None:
        findings.passed.append(
            f"{max(shares_beyond_bounds(spec)):.0%} of what the untrained policy samples for an "
            f"action lie outside its bounds, with policy.action_bounds = {spec.action_bounds.mode}"
        )
    findings.passed.append(
        f"Gymnasium's check_env: observations {env.observation_space}, actions {env.action_space}"
    )
    return spec


@dataclass(frozen=True)
class _Rollouts:
    """Roll out batches of a distribution's tasks, always from the same seed."""

    tasks: TaskDistribution
    policy: NumpyPolicy
    horizon: int

    def make(self, task: Task) -> VectorEnv[Any, Any, Any]:
        return self.tasks.make_vector_env(task, num_envs=_EPISODES, horizon=self.horizon)

    def make_singles(self, task: Task) -> VectorEnv[Any, Any, Any]:
        return TaskDistribution.make_vector_env(
            self.tasks, task, num_envs=_EPISODES, horizon=self.horizon
        )

    def collect(self, env: VectorEnv[Any, Any, Any]) -> Trajectories:
        return collect(self.policy, env, self.horizon, np.random.SeedSequence(0))

    def collect_new(self, make: Callable[[Task], Any], task: Task) -> Trajectories:
        env = make(task)
        try:
            return self.collect(env)
        finally:
            env.close()


def _check_batches(rollouts: _Rollouts, drawn: Sequence[Task], findings: _Findings) -> None:
    task = drawn[0]
    other = next((one for one in drawn if one.parameters != task.parameters), task)
    parameters = dict(task.parameters)
    found = findings.call(f"task({parameters!r:.80})", find_task, rollouts.tasks, parameters)
    findings.expect(
        found.parameters == task.parameters,
        f"task({parameters!r:.80}) returns a task with the parameters "
        f"{dict(found.parameters)!r:.80}: return the one that was asked for",
    )
    env = findings.call("make_vector_env", rollouts.make, task)
    try:
        _check_batch(rollouts, env, task, findings)
        first = findings.call("a batch", rollouts.collect, env)
        for again in (
            findings.call("a batch after its first episodes", rollouts.collect, env),
            findings.call("a second batch", rollouts.collect_new, rollouts.make, task),
        ):
            findings.expect(
                _equal(first, again),
                "two rollouts from the same seed differ: draw all randomness from self.np_random, "
                "which reset(seed=...) seeds, and let reset restore the whole state",
            )
        steps = int(first.mask.sum())
        findings.passed.append(
            f"{_EPISODES} episodes of a batch, {steps} steps, are finite, and the same each time"
        )
        second = findings.call("a batch", rollouts.collect_new, rollouts.make, other)
        if other is not task and _equal(first, second):
            findings.notes.append(
                f"the tasks {task.name!r} and {other.name!r} give the same first {steps} steps: "
                "make_env may ignore the task"
            )
        if findings.call("retarget", rollouts.tasks.retarget, env, other):
            findings.expect(
                _equal(findings.call("a batch after retarget", rollouts.collect, env), second),
                f"a batch that retarget has switched to the task {other.name!r} differs from a new "
                "one: set everything that depends on the task",
            )
            findings.passed.append("retarget switches a batch to another task")
    finally:
        env.close()
    if type(rollouts.tasks).make_vector_env is not TaskDistribution.make_vector_env:
        single = findings.call("make_env", rollouts.collect_new, rollouts.make_singles, task)
        if _equal(first, single):
            findings.passed.append("make_vector_env equals make_env to the last bit")
        else:
            findings.notes.append(
                "make_vector_env and make_env differ from the same seed: an evaluation's video, "
                "which make_env replays, shows other episodes than were measured"
            )


def _check_batch(
    rollouts: _Rollouts, env: VectorEnv[Any, Any, Any], task: Task, findings: _Findings
) -> None:
    single = rollouts.tasks.make_env(task, horizon=rollouts.horizon)
    spaces = (single.observation_space, single.action_space)
    single.close()
    findings.require(
        (env.single_observation_space, env.single_action_space) == spaces,
        "make_vector_env has other spaces than make_env: "
        f"{env.single_observation_space}, {env.single_action_space}",
    )
    findings.require(
        env.num_envs == _EPISODES,
        f"make_vector_env(num_envs={_EPISODES}) returns {env.num_envs} environments",
    )
    findings.expect(
        env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP,
        "make_vector_env resets episodes within their last step, which loses the last "
        "observation: use AutoresetMode.NEXT_STEP or DISABLED",
    )


def _equal(one: Trajectories, other: Trajectories) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("observations", "rewards", "mask", "final_observations", "terminated")
    )
