"""Check batches of a task distribution by rolling them out, always from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from maml_ray.envs.user_errors import closing_env
from maml_ray.envs.vector_env import NumbersOnly
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.rollouts.check_findings import Findings
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.step_reader import autoreset_mode
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.task import Task, TaskDistribution, has_own_batches, opened_env
from maml_ray.tasks.task_lookup import find_task

_EPISODES = 2  # enough to see a difference, and quick

_Batch = VectorEnv[Any, Any, Any]
_Spaces = tuple[gym.Space[Any], gym.Space[Any]]


@dataclass(frozen=True)
class BatchCheck:
    """Rolls out batches of a distribution's tasks and compares what they give.

    Attributes:
        tasks: the distribution.
        policy: acts in them.
        horizon: steps of a rollout.
        info_metrics: names of infos to average.
        findings: where sentences are added.
    """

    tasks: TaskDistribution
    policy: NumpyPolicy
    horizon: int
    info_metrics: Sequence[str]
    findings: Findings

    def run(self, drawn: Sequence[Task]) -> Trajectories:
        """Check the batches of two of the sampled tasks; return the first episodes.

        Raises:
            CheckStopped: a batch cannot be rolled out, or has other spaces.
            UserCodeError: an environment or a batch cannot be created or closed.
        """
        task = drawn[0]
        other = next((one for one in drawn if one.parameters != task.parameters), task)
        self._check_found(task)
        with closing_env(self._call("make_vector_env", self._make, task)) as env:
            self._check_batch(env, task)
            first = self._check_repeats(env, task)
            self._check_other_task(env, first, task, other)
        if has_own_batches(self.tasks):
            self._compare_with_singles(first, task)
        self._check_infos(first, task)
        return first

    def _check_found(self, task: Task) -> None:
        parameters = dict(task.parameters)
        call = f"task({parameters!r:.80})"
        found = self._call(call, find_task, self.tasks, parameters)
        self.findings.expect(
            found.parameters == task.parameters,
            f"{call} returns a task with the parameters {dict(found.parameters)!r:.80}: return the "
            "one that was asked for",
        )

    def _check_batch(self, env: _Batch, task: Task) -> None:
        spaces = self._spaces(task)
        batch_spaces = (env.single_observation_space, env.single_action_space)
        self.findings.require(
            _fit(spaces, batch_spaces),
            f"make_vector_env has other spaces than make_env: {_listed(batch_spaces)} instead of "
            f"{_listed(spaces)}",
        )
        self.findings.require(
            env.num_envs == _EPISODES,
            f"make_vector_env(num_envs={_EPISODES}) returns {env.num_envs} environments",
        )
        if autoreset_mode(env) is None:
            self.findings.notes.append(
                "the batch's metadata have no autoreset_mode: it is taken to be "
                "gymnasium.vector.AutoresetMode.NEXT_STEP"
            )

    def _check_repeats(self, env: _Batch, task: Task) -> Trajectories:
        """Check that rollouts depend on the seed alone; return the first of them."""
        first: Trajectories = self._call("a batch", self._collect, env)
        repeated = (
            self._call("a batch after its first episodes", self._collect, env),
            self._call("a second batch", self._collect_new, self._make, task),
        )
        self.findings.expect(
            all(_equal(first, again) for again in repeated),
            "two rollouts from the same seed differ: " + _how_to_repeat(self.tasks),
        )
        self.findings.passed.append(
            f"{_EPISODES} episodes of a batch, {first.env_steps} steps, are finite, and the same "
            "each time"
        )
        return first

    def _check_other_task(self, env: _Batch, first: Trajectories, task: Task, other: Task) -> None:
        """Check a new batch of the ``other`` task, and ``env`` if it can be switched to that."""
        spaces, other_spaces = self._spaces(task), self._spaces(other)
        self.findings.require(
            _fit(spaces, other_spaces),
            f"the tasks {task.name!r} and {other.name!r} have different spaces: {_listed(spaces)} "
            f"and {_listed(other_spaces)}: one policy must suit all tasks, so pad what differs",
        )
        second = self._call("a batch", self._collect_new, self._make, other)
        if other is not task and _equal(first, second):
            self.findings.notes.append(
                f"the tasks {task.name!r} and {other.name!r} give the same first "
                f"{first.env_steps} steps: make_env may ignore the task"
            )
        if self._call("retarget", self.tasks.retarget, env, other):
            self.findings.expect(
                _equal(self._call("a batch after retarget", self._collect, env), second),
                f"a batch that retarget has switched to the task {other.name!r} differs from a new "
                "one: set everything that depends on the task",
            )
            self.findings.passed.append("retarget switches a batch to another task")

    def _compare_with_singles(self, first: Trajectories, task: Task) -> None:
        singles = self._call("make_env", self._collect_new, self._make_singles, task)
        if _equal(first, singles):
            self.findings.passed.append("make_vector_env equals make_env to the last bit")
        else:
            self.findings.notes.append(
                "make_vector_env and make_env differ from the same seed: an evaluation's video, "
                "which make_env replays, shows other episodes than were measured"
            )

    def _check_infos(self, first: Trajectories, task: Task) -> None:
        missing = [name for name in self.info_metrics if name not in first.info_means]
        if missing:
            numbers = self._call("the environment", self._numbers_of_info, task)
            self.findings.notes.append(
                f"task.info_metrics: no environment reported {', '.join(missing)} in "
                f"{first.env_steps} steps; its info has the numbers "
                f"{', '.join(numbers[:20]) or '(none)'}"
            )

    def _numbers_of_info(self, task: Task) -> list[str]:
        with opened_env(self.tasks, task, self.horizon) as opened:
            env = NumbersOnly(opened)
            env.reset(seed=0)
            return sorted(env.step(env.action_space.sample())[4])

    def _call(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        return self.findings.call(what, function, *args)

    def _make(self, task: Task) -> _Batch:
        return self.tasks.make_vector_env(task, num_envs=_EPISODES, horizon=self.horizon)

    def _make_singles(self, task: Task) -> _Batch:
        return TaskDistribution.make_vector_env(
            self.tasks, task, num_envs=_EPISODES, horizon=self.horizon
        )

    def _spaces(self, task: Task) -> _Spaces:
        with opened_env(self.tasks, task, self.horizon) as env:
            return env.observation_space, env.action_space

    def _collect(self, env: _Batch) -> Trajectories:
        seed = np.random.SeedSequence(0)
        return collect(self.policy, env, self.horizon, seed, info_metrics=self.info_metrics)

    def _collect_new(self, make: Callable[[Task], _Batch], task: Task) -> Trajectories:
        with closing_env(make(task)) as env:
            return self._collect(env)


def _how_to_repeat(tasks: TaskDistribution) -> str:
    if not has_own_batches(tasks):
        return (
            "draw all randomness from self.np_random, which reset(seed=...) seeds, and let reset "
            "restore the whole state"
        )
    return (
        "the batch of make_vector_env must draw all randomness from the seed of reset(seed=...), "
        "which EnvPool ignores, and restore its whole state there"
    )


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


def _equal(one: Trajectories, other: Trajectories) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("observations", "rewards", "mask", "final_observations", "terminated")
    )
