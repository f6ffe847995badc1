"""Check a task distribution: sample it, and roll out its environments as training does."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import env_checker
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import VectorEnv

from maml_ray.common.errors import UserError
from maml_ray.common.normalization import RunningStatistics
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.envs.user_errors import (
    OLD_API,
    UserCodeError,
    describe_user_error,
    place_of_definition,
    user_code,
)
from maml_ray.envs.vector_env import NumbersOnly
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import (
    PolicySpec,
    bounds_warning,
    initial_parameters,
    shares_beyond_bounds,
)
from maml_ray.rollouts.collector import collect, seed_argument
from maml_ray.rollouts.step_reader import autoreset_mode
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.gymnasium_tasks import GymnasiumTasks
from maml_ray.tasks.loading import OwnTasks, record_own_tasks, resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import (
    Task,
    TaskDistribution,
    create_env,
    draw_tasks,
    find_task,
    sampling_problem,
)

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
            # As in a run's first iteration: the normalizer decides about the observations' type.
            normalizer = RunningStatistics.empty(spec.observation_size).normalizer()
            parameters = initial_parameters(spec, np.random.default_rng(0))
            policy = NumpyPolicy(spec, parameters, normalizer)
            rollouts = _Rollouts(distribution, policy, horizon, settings.task.info_metrics)
            first = _check_batches(rollouts, drawn, findings)
            _check_observations(first, settings.policy.normalize_observations, findings)
            _check_infos(first, rollouts, drawn[0], findings)
    except _Stopped:
        pass
    return findings.summary(name)


def try_first_steps(settings: Settings, tasks: TaskDistribution) -> None:
    """Sample a meta-batch and take the first steps in the user's environment, before Ray starts.

    The part of :func:`check_tasks` that is quick in any simulator. Built-in families pass.

    Args:
        settings: of the run.
        tasks: its task distribution.

    Raises:
        SettingsError: training would fail at the same.
    """
    if settings.task.env is None and settings.task.name in TASK_FAMILIES:
        return
    horizon = settings.task.horizon
    try:
        task = draw_tasks(tasks, np.random.default_rng(0), settings.meta_batch.tasks)[0]
        env = create_env(tasks, task, horizon)
        try:
            _step_once(env)
        finally:
            env.close()
        _create_extremes(tasks, horizon)
        if type(tasks).make_vector_env is not TaskDistribution.make_vector_env:
            _step_batch_once(tasks, task, horizon)
    except UserCodeError as error:
        raise SettingsError(
            f"task.name = {settings.task.name!r:.80} cannot be used: {error}"
        ) from error


def _create_extremes(tasks: TaskDistribution, horizon: int) -> None:
    """Create environments near the ends of ranges that settings give, as a later task may be.

    Raises:
        UserCodeError: the environment refuses them.
    """
    if isinstance(tasks, GymnasiumTasks) and tasks.ranges:
        for task in tasks.extremes():
            create_env(tasks, task, horizon).close()


def _step_once(env: gym.Env[Any, Any]) -> None:
    """Reset an environment and take a step.

    Raises:
        UserCodeError: either raises an error or returns what Gymnasium's interface does not allow.
    """
    reset, step = (getattr(type(env.unwrapped), name) for name in ("reset", "step"))
    place = place_of_definition(reset)
    with user_code("reset", reset):
        returned: Any = env.reset(seed=0)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise UserCodeError(f"reset returns {_shown(returned)}{place}: {OLD_API}")
    _check_shape(f"reset{place}", env, returned[0])
    env.action_space.seed(0)
    place = place_of_definition(step)
    with user_code("step", step):
        returned = env.step(env.action_space.sample())
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise UserCodeError(f"step returns {_shown(returned)}{place}: {OLD_API}")
    _check_shape(f"step{place}", env, returned[0])
    if np.size(returned[1]) != 1:
        reward = " ".join(repr(returned[1]).split())
        raise UserCodeError(f"step{place} returns the reward {reward:.60}: return a number")


def _shown(returned: Any) -> str:
    number = f"{len(returned)} values" if isinstance(returned, tuple) else "no tuple"
    return f"{number}, {' '.join(repr(returned).split()):.60}"


def _check_shape(what: str, env: gym.Env[Any, Any], observation: Any) -> None:
    expected, shape = env.observation_space.shape, np.shape(observation)
    if shape != expected:
        raise UserCodeError(
            f"{what} returns an observation of shape {shape}, but the shape of its "
            f"observation_space is {expected}"
        )


def _step_batch_once(tasks: TaskDistribution, task: Task, horizon: int) -> None:
    """Create a batch by the family's own ``make_vector_env``, reset it and take a step.

    Raises:
        UserCodeError: one of these raises an error, or it is no batch.
    """
    with user_code("make_vector_env", tasks.make_vector_env):
        batch = tasks.make_vector_env(task, num_envs=_EPISODES, horizon=horizon)
    if not isinstance(batch, VectorEnv):
        raise UserCodeError(
            f"make_vector_env returns a {type(batch).__name__}, not a gymnasium.vector.VectorEnv"
        )
    try:
        with user_code("the batch"):
            batch.reset(seed=seed_argument(batch, list(range(_EPISODES))))
            batch.step(np.stack([batch.single_action_space.sample() for _ in range(_EPISODES)]))
    finally:
        batch.close()


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
        except UserCodeError as error:
            self.problems.append(str(error))
        except UserError as error:
            self.problems.append(f"{what}: {error}")
        except Exception as error:  # a user's class may raise anything
            self.problems.append(f"{what} raises {describe_user_error(error)}")
        raise _Stopped

    def summary(self, name: str) -> TaskCheck:
        return TaskCheck(name, tuple(self.passed), tuple(self.notes), tuple(self.problems))


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
    problem = sampling_problem(drawn, _TASKS)
    if problem is not None:
        findings.problems.append(f"{call} {problem}{place_of_definition(sample)}")
        if not isinstance(drawn, Sequence) or sampling_problem(drawn, len(drawn)) or not drawn:
            raise _Stopped
    findings.expect(
        tuple(drawn) == tuple(again),
        f"{call} draws other tasks from an equal generator: draw from rng alone",
    )
    return drawn


def _check_env(
    tasks: TaskDistribution, task: Task, settings: Settings, horizon: int, findings: _Findings
) -> PolicySpec | None:
    """Check one environment; return the policy's sizes for it."""
    findings.call("make_env", _create_extremes, tasks, horizon)
    env = findings.call("make_env", create_env, tasks, task, horizon)
    try:
        spec = PolicySpec.from_spaces(
            settings.policy, env.observation_space, env.action_space, tasks.action_bounds
        )
    except ValueError as error:
        env.close()
        findings.problems.append(str(error))
        raise _Stopped from None
    try:
        findings.call("the environment", _step_once, env)
        objection = findings.call("the environment", _gymnasium_objection, env)
    finally:
        env.close()
    if (warning := bounds_warning(spec)) is not None:
        findings.notes.append(warning)
    elif spec.action_bounds is not None:
        findings.passed.append(
            f"{max(shares_beyond_bounds(spec)):.0%} of what the untrained policy samples for an "
            f"action lies outside its bounds, with policy.action_bounds = {spec.action_bounds.mode}"
        )
    if objection is None:
        findings.passed.append(
            f"Gymnasium's check_env: observations {env.observation_space}, actions "
            f"{env.action_space}"
        )
    else:
        findings.notes.append(
            f"Gymnasium's check_env, on which training does not rely: {objection}"
        )
    return spec


def _gymnasium_objection(env: gym.Env[Any, Any]) -> str | None:
    """Return what Gymnasium's checker objects to; None if nothing.

    It is stricter than training: it wants observations within their bounds, and a generator in
    each wrapper. Whether rollouts are finite and repeatable is checked by doing them.

    Raises:
        Exception: whatever the environment raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recommendations, such as bounds of observations
            check_env(env, skip_render_check=True, skip_close_check=True)
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(raised_in).parent != Path(env_checker.__file__).parent:
            raise
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


_Spaces = tuple[gym.Space[Any], gym.Space[Any]]


def _fit(one: _Spaces, other: _Spaces) -> bool:
    """Return whether a policy for one pair of spaces suits the other, of other types or not."""
    (observations, actions), (other_observations, other_actions) = one, other
    same_size = observations.shape == other_observations.shape
    if isinstance(actions, Box) and isinstance(other_actions, Box):
        same_size = same_size and actions.shape == other_actions.shape
        return same_size and all(
            np.allclose(getattr(actions, bound), getattr(other_actions, bound))
            for bound in ("low", "high")
        )
    return same_size and actions == other_actions


def _listed(spaces: _Spaces) -> str:
    return f"observations {spaces[0]}, actions {spaces[1]}"


@dataclass(frozen=True)
class _Rollouts:
    """Roll out batches of a distribution's tasks, always from the same seed."""

    tasks: TaskDistribution
    policy: NumpyPolicy
    horizon: int
    info_metrics: Sequence[str]

    def make(self, task: Task) -> VectorEnv[Any, Any, Any]:
        return self.tasks.make_vector_env(task, num_envs=_EPISODES, horizon=self.horizon)

    def make_singles(self, task: Task) -> VectorEnv[Any, Any, Any]:
        return TaskDistribution.make_vector_env(
            self.tasks, task, num_envs=_EPISODES, horizon=self.horizon
        )

    def spaces(self, task: Task) -> _Spaces:
        env = create_env(self.tasks, task, self.horizon)
        env.close()
        return env.observation_space, env.action_space

    def collect(self, env: VectorEnv[Any, Any, Any]) -> Trajectories:
        seed = np.random.SeedSequence(0)
        return collect(self.policy, env, self.horizon, seed, info_metrics=self.info_metrics)

    def collect_new(self, make: Callable[[Task], Any], task: Task) -> Trajectories:
        env = make(task)
        try:
            return self.collect(env)
        finally:
            env.close()


def _check_batches(rollouts: _Rollouts, drawn: Sequence[Task], findings: _Findings) -> Trajectories:
    """Check batches; return the first episodes."""
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
        first: Trajectories = findings.call("a batch", rollouts.collect, env)
        repeated = [
            findings.call("a batch after its first episodes", rollouts.collect, env),
            findings.call("a second batch", rollouts.collect_new, rollouts.make, task),
        ]
        findings.expect(
            all(_equal(first, again) for again in repeated),
            "two rollouts from the same seed differ: " + _how_to_repeat(rollouts.tasks),
        )
        steps = int(first.mask.sum())
        findings.passed.append(
            f"{_EPISODES} episodes of a batch, {steps} steps, are finite, and the same each time"
        )
        spaces, other_spaces = (
            findings.call("make_env", rollouts.spaces, each) for each in (task, other)
        )
        findings.require(
            _fit(spaces, other_spaces),
            f"the tasks {task.name!r} and {other.name!r} have different spaces: {_listed(spaces)} "
            f"and {_listed(other_spaces)}: one policy must suit all tasks, so pad what differs",
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
    return first


def _how_to_repeat(tasks: TaskDistribution) -> str:
    if type(tasks).make_vector_env is TaskDistribution.make_vector_env:
        return (
            "draw all randomness from self.np_random, which reset(seed=...) seeds, and let reset "
            "restore the whole state"
        )
    return (
        "the batch of make_vector_env must draw all randomness from the seed of reset(seed=...), "
        "which EnvPool ignores, and restore its whole state there"
    )


def _check_observations(first: Trajectories, normalize: bool, findings: _Findings) -> None:
    if first.observations.dtype == np.float64 and not normalize:
        largest = np.abs(first.observations).max()
        findings.notes.append(
            f"observations of magnitude {largest:.1g} vary by less than a network's float32 "
            "resolves: set policy.normalize_observations: true, which centers them in float64, or "
            "subtract a constant in the environment"
        )


def _check_infos(first: Trajectories, rollouts: _Rollouts, task: Task, findings: _Findings) -> None:
    missing = [name for name in rollouts.info_metrics if name not in first.info_means]
    if not missing:
        return
    env = NumbersOnly(create_env(rollouts.tasks, task, rollouts.horizon))
    try:
        env.reset(seed=0)
        numbers = sorted(env.step(env.action_space.sample())[4])
    finally:
        env.close()
    findings.notes.append(
        f"task.info_metrics: no environment reported {', '.join(missing)} in "
        f"{int(first.mask.sum())} steps; its info has the numbers "
        f"{', '.join(numbers[:20]) or '(none)'}"
    )


def _check_batch(
    rollouts: _Rollouts, env: VectorEnv[Any, Any, Any], task: Task, findings: _Findings
) -> None:
    spaces = rollouts.spaces(task)
    batch_spaces = (env.single_observation_space, env.single_action_space)
    findings.require(
        _fit(spaces, batch_spaces),
        f"make_vector_env has other spaces than make_env: {_listed(batch_spaces)} instead of "
        f"{_listed(spaces)}",
    )
    findings.require(
        env.num_envs == _EPISODES,
        f"make_vector_env(num_envs={_EPISODES}) returns {env.num_envs} environments",
    )
    if autoreset_mode(env) is None:
        findings.notes.append(
            "the batch's metadata have no autoreset_mode: it is taken to be "
            "gymnasium.vector.AutoresetMode.NEXT_STEP"
        )


def _equal(one: Trajectories, other: Trajectories) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("observations", "rewards", "mask", "final_observations", "terminated")
    )
