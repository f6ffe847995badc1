"""Physics that sleeps: batches whose steps take the time of real ones, and no CPU.

What travels is what travels of ten episodes of a half-cheetah, 200 steps each, with a policy of two
layers of 64: 0.2 MB a phase, and 20 KB of parameters. It is made of two long steps with wide
observations and a narrow layer, since 200 calls of a policy, in each of 64 actors, would keep two
cores busy for longer than the physics sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from maml_ray.envs.vector_env import BatchEnv, Float64, Infos, Transition
from maml_ray.tasks.task import Task, TaskDistribution

OBSERVATIONS = 1650
ACTIONS = 6
STEPS = 2
EPISODES = 10
HIDDEN = 3
PHASES = 2
"""Support and query: one inner step."""


class SleepingEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One simulation, which does not sleep: of it a run takes the spaces, and tries one step."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(self, **keywords: Any) -> tuple[NDArray[np.float32], Infos]:
        """There is nothing to draw."""
        return np.zeros(OBSERVATIONS, np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Infos]:
        """Go nowhere."""
        return np.zeros(OBSERVATIONS, np.float32), 0.0, False, False, {}


class SleepingVector(BatchEnv):
    """K simulations that end a step when an actor with a core of its own would have.

    The time of a task begins with its first phase: what the policy and the inner step take in
    between is a part of it, since 64 actors that share two cores are not what is measured.

    Args:
        num_envs: K.
        step_s: seconds of a step of the whole batch.
        max_episode_steps: truncate after that many steps.
    """

    def __init__(self, num_envs: int, *, step_s: float, max_episode_steps: int) -> None:
        super().__init__(
            SleepingEnv(),
            num_envs,
            max_episode_steps=max_episode_steps,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self._step_s = step_s
        self._phase, self._due = 0, 0.0
        self._seen = np.random.default_rng(0).normal(size=(num_envs, OBSERVATIONS)) * 0.1

    def reset(self, **keywords: Any) -> tuple[Float64, Infos]:
        """Of support or query, in turn. There is nothing to draw, and so nothing to seed."""
        if self._phase == 0:
            self._due = time.perf_counter()
        self._phase = (self._phase + 1) % PHASES
        self._elapsed[:], self._done[:] = 0, False
        return self._seen, {}

    def reset_one(self, i: int) -> None:
        """Nothing to put anywhere."""

    def advance(self, indices: Sequence[int], actions: NDArray[Any]) -> None:
        """Sleep until the step would be over."""
        self._due += self._step_s
        time.sleep(max(0.0, self._due - time.perf_counter()))

    def observe(self) -> Float64:
        """The same every time."""
        return self._seen

    def assess(self, actions: NDArray[Any]) -> Transition:
        """Small actions are worth more: something to learn."""
        rewards = -np.square(actions, dtype=np.float64).mean(axis=1)
        return Transition(rewards, np.zeros(self.num_envs, dtype=np.bool_), {})


class SleepingTasks(TaskDistribution):
    """Tasks without a difference.

    Args:
        phase_s: seconds of one phase, support or query: a batch of whole episodes.
    """

    def __init__(self, phase_s: float = 0.25) -> None:
        self.phase_s = phase_s

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """The one there is, so many times."""
        return (Task("sleeping"),) * count

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """For its spaces."""
        return SleepingEnv()

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        """The batch."""
        step_s = self.phase_s / horizon
        return SleepingVector(num_envs, step_s=step_s, max_episode_steps=horizon)

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        """All tasks are one."""
        return True
