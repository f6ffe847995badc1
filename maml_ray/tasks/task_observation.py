"""Tasks that the policy is told: their parameters stand in its observation.

That is the oracle of Finn et al. 2017 (https://arxiv.org/abs/1703.03400), section 5.3: what a
policy does that need not find out which task it has, and so what adaptation can reach at best.
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
from maml_ray.tasks.task import Task, TaskDistribution

_BOUND = 1e10  # of a parameter, in the space alone: MuJoCo's own, since infinity is warned of


class ObservedParametersTasks(TaskDistribution):
    """Another distribution's tasks, with their parameters (P,) at the end of the observation.

    Args:
        tasks: the distribution; every one of its tasks has the same parameters, in other values.
        name: what it is called in the settings.

    Raises:
        SettingsError: its tasks have no parameters.
    """

    def __init__(self, tasks: TaskDistribution, name: str) -> None:
        self.tasks = tasks
        first = tasks.sample(np.random.default_rng(0), 1)[0]
        self.names = tuple(key for key, _ in first.parameters)
        if not self.names:
            raise SettingsError(
                f"task.observe_parameters = true is not allowed: tasks of {name!r} "
                "have no parameters that a policy could be told"
            )

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """As the distribution's own."""
        return self.tasks.sample(rng, count)

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """As the distribution's own."""
        return self.tasks.sample_held_out(rng, count)

    def task(self, parameters: Mapping[str, float]) -> Task:
        """As the distribution's own."""
        return self.tasks.task(parameters)

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """One environment that tells the parameters."""
        env = self.tasks.make_env(task, horizon=horizon, render_mode=render_mode)
        return ParametersInObservation(env, self.values(task))

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The distribution's own batch, and the parameters."""
        env = self.tasks.make_vector_env(task, num_envs=num_envs, horizon=horizon)
        return VectorParametersInObservation(env, self.values(task))

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """As the distribution's own; the new task is told as well."""
        assert isinstance(env, VectorParametersInObservation)
        if not self.tasks.retarget(env.env, task):
            return False
        env.tell(self.values(task))
        return True

    def values(self, task: Task) -> list[float]:
        """The parameters (P,) of ``task`` in the order of all tasks.

        Raises:
            ValueError: it has others than the distribution's tasks.
        """
        given = dict(task.parameters)
        if set(given) != set(self.names):
            # A task put together by hand may leave some at what the distribution takes for them.
            given = dict(self.tasks.task(given).parameters)
        if set(given) != set(self.names):
            raise ValueError(
                f"the task {task.name!r} must have the parameters {', '.join(self.names)} "
                "to be observed"
            )
        return [given[name] for name in self.names]


class ParametersInObservation(gym.ObservationWrapper):
    """A single environment whose observation (D,) is followed by ``values`` (P,)."""

    def __init__(self, env: gym.Env[Any, Any], values: Sequence[float]) -> None:
        super().__init__(env)
        self.observation_space = _with_parameters(env.observation_space, len(values))
        self._values = np.asarray(values, dtype=self.observation_space.dtype)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The environment's own, and the parameters."""
        return np.concatenate((observation, self._values))


class VectorParametersInObservation(VectorWrapper):
    """A batch whose observations (K, D) are followed by ``values`` (P,) in every row."""

    def __init__(self, env: VectorEnv[Any, Any, Any], values: Sequence[float]) -> None:
        super().__init__(env)
        self.single_observation_space = _with_parameters(env.single_observation_space, len(values))
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.tell(values)

    def tell(self, values: Sequence[float]) -> None:
        """Other values from now on."""
        row = np.asarray(values, dtype=self.single_observation_space.dtype)
        self._block = np.tile(row, (self.num_envs, 1))  # made once: each step only copies it

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """As the environment's own."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return np.concatenate((observations, self._block), axis=1), infos

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """As the environment's own."""
        observations, *rest = self.env.step(actions)
        return (np.concatenate((observations, self._block), axis=1), *rest)


def _with_parameters(space: gym.Space[Any], count: int) -> Box:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"parameters can be told in a flat Box observation only, got {space}")
    bound = np.full(count, _BOUND, dtype=space.dtype)
    low, high = np.concatenate((space.low, -bound)), np.concatenate((space.high, bound))
    return Box(low, high, dtype=space.dtype)
