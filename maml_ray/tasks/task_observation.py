"""Append a task's parameters to the policy's observation.

This is the oracle of Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3: a policy
that knows its task is an upper bound for one that must adapt to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from maml_ray.config.settings import SettingsError
from maml_ray.envs.user_errors import UserCodeError
from maml_ray.tasks.task import Task, TaskDistribution, draw_tasks, unusable_tasks

_BOUND = 1e10  # of a parameter in the space: MuJoCo's limit, since Gymnasium warns of infinity


class ObservedParametersTasks(TaskDistribution):
    """Wraps a distribution: observations end with the task's parameters (P,).

    Args:
        tasks: the distribution; all its tasks have parameters of the same names.
        name: its name in the settings, for the error message.

    Raises:
        SettingsError: its tasks have no parameters, or text among them.
    """

    def __init__(self, tasks: TaskDistribution, name: str) -> None:
        self.tasks, self.action_bounds = tasks, tasks.action_bounds
        try:
            (first,) = draw_tasks(tasks, np.random.default_rng(0), 1)
        except UserCodeError as error:
            raise unusable_tasks(name, error) from error
        self.names = tuple(key for key, _ in first.parameters)
        text = next((pair for pair in first.parameters if isinstance(pair[1], str)), None)
        if not self.names or text is not None:
            problem = "no parameters to observe"
            if text is not None:
                problem = f"the parameter {text[0]!r:.60}, which is text ({text[1]!r:.60})"
            raise SettingsError(
                f"task.observe_parameters = true is not allowed: tasks of {name!r} have {problem}"
            )

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw from the wrapped distribution."""
        return self.tasks.sample(rng, count)

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw from the wrapped distribution."""
        return self.tasks.sample_held_out(rng, count)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the wrapped distribution's task."""
        return self.tasks.task(parameters)

    def named_tasks(self) -> tuple[Task, ...]:
        """Return those of the wrapped distribution."""
        return self.tasks.named_tasks()

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create one environment that observes the parameters."""
        env = self.tasks.make_env(task, horizon=horizon, render_mode=render_mode)
        return ParametersInObservation(env, self.values(task))

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """Create the wrapped distribution's batch, observing the parameters."""
        env = self.tasks.make_vector_env(task, num_envs=num_envs, horizon=horizon)
        return VectorParametersInObservation(env, self.values(task))

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """Switch the wrapped batch, and the parameters that it observes."""
        assert isinstance(env, VectorParametersInObservation)
        if not self.tasks.retarget(env.env, task):
            return False
        env.set_parameters(self.values(task))
        return True

    def values(self, task: Task) -> list[float]:
        """Return the parameters (P,) of ``task`` in one order for all tasks.

        Raises:
            ValueError: its parameters are not those of the distribution's tasks.
        """
        parameters = dict(task.parameters)
        if set(parameters) != set(self.names):  # a hand-made task may rely on defaults
            parameters = dict(self.tasks.task(parameters).parameters)
        if set(parameters) != set(self.names):
            raise ValueError(
                f"the task {task.name!r} must have the parameters {', '.join(self.names)} "
                "to be observed"
            )
        values = [parameters[name] for name in self.names]
        if any(isinstance(value, str) for value in values):
            raise ValueError(f"the parameters of the task {task.name!r:.60} include text")
        return values


class ParametersInObservation(gym.ObservationWrapper):
    """Appends ``values`` (P,) to the observation (D,) of a single environment."""

    def __init__(self, env: gym.Env[Any, Any], values: Sequence[float]) -> None:
        super().__init__(env)
        self.observation_space = _with_parameters(env.observation_space, len(values))
        self._values = np.asarray(values, dtype=self.observation_space.dtype)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Append the parameters."""
        return np.concatenate((observation, self._values))


class VectorParametersInObservation(VectorWrapper):
    """Appends ``values`` (P,) to each row of a batch's observations (K, D)."""

    def __init__(self, env: VectorEnv[Any, Any, Any], values: Sequence[float]) -> None:
        super().__init__(env)
        self.single_observation_space = _with_parameters(env.single_observation_space, len(values))
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.set_parameters(values)

    def set_parameters(self, values: Sequence[float]) -> None:
        """Set the values to append from now on."""
        row = np.asarray(values, dtype=self.single_observation_space.dtype)
        self._block = np.tile(row, (self.num_envs, 1))

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset, and append the parameters."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return np.concatenate((observations, self._block), axis=1), infos

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step, and append the parameters, also to the last observations of SAME_STEP batches."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            final = np.full(self.num_envs, None)
            for i, row in enumerate(infos["final_obs"]):
                final[i] = None if row is None else np.concatenate((row, self._block[i]))
            infos = {**infos, "final_obs": final}
        observations = np.concatenate((observations, self._block), axis=1)
        return observations, rewards, terminations, truncations, infos


def _with_parameters(space: gym.Space[Any], count: int) -> Box:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"parameters can be appended to a flat Box observation only, got {space}")
    bound = np.full(count, _BOUND, dtype=space.dtype)
    low, high = np.concatenate((space.low, -bound)), np.concatenate((space.high, bound))
    return Box(low, high, dtype=space.dtype)
