"""How close one rollout actor comes to the physics alone, family by family.

Episodes are kept from ending: a walker that falls would leave the collection, while the physics
alone went on, at the price of a body that lies on the floor. So both sides simulate the same
states, from the same seeds, with the same actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from mujoco import rollout as mujoco_rollout

from maml_ray.collection import collect, reset_seeds
from maml_ray.config import Settings, TaskSettings
from maml_ray.numpy_policy import NumpyPolicy
from maml_ray.policy import PolicySpec, initial_parameters, to_numpy
from maml_ray.tasks.lookup import resolve_tasks
from maml_ray.tasks.registration import env_id
from maml_ray.tasks.runner_tasks import RunnerTasks
from maml_ray.tasks.runners import FallingVector, RunnerVector

HORIZON = 200
SEED = np.random.SeedSequence(0)
ENVPOOL = {"half-cheetah-backward": "HalfCheetah-v4"}
"""Families that EnvPool has the like of, doing the same work."""


@dataclass(frozen=True)
class CollectionResult:
    """Microseconds per environment step, the median of interleaved rounds.

    ``ratio_to_physics`` is the median of the rounds' ratios: 1 is the physical limit.
    """

    family: str
    episodes: int
    physics_us: float
    collected_us: float
    ratio_to_physics: float
    sync_us: float
    speedup_over_sync: float
    envpool_us: float | None
    speedup_over_envpool: float | None


class Contest:
    """One family's batch without ends, a policy for it, and the actions that it takes."""

    def __init__(self, family: str, episodes: int) -> None:
        tasks = resolve_tasks(TaskSettings(name=family))
        assert isinstance(tasks, RunnerTasks), f"{family} has no physics"
        (task,) = tasks.sample(np.random.default_rng(0), 1)
        self.family, self.episodes, self.vector = family, episodes, tasks.vector
        self.keywords = tasks.keywords(task)
        if issubclass(tasks.vector, FallingVector):
            self.keywords["terminate_when_unhealthy"] = False
        self.env: RunnerVector = tasks.vector(
            episodes,
            max_episode_steps=HORIZON,
            autoreset_mode=AutoresetMode.DISABLED,
            **self.keywords,
        )
        spec = PolicySpec.from_spaces(
            Settings().policy, self.env.single_observation_space, self.env.single_action_space
        )
        parameters = to_numpy(initial_parameters(spec, np.random.default_rng(0)))
        self.policy = NumpyPolicy(spec, parameters)
        trajectories = self.collected()
        assert trajectories.mask.all(), f"an episode of {family} has ended"
        self.actions = trajectories.actions

    def collected(self) -> Any:
        """What a rollout actor does."""
        return collect(self.policy, self.env, HORIZON, SEED)

    def physics(self) -> Callable[[], Any]:
        """``mujoco.rollout`` on this thread: the collection's own first states and actions."""
        env: Any = self.vector.single(**self.keywords)
        model, data = env.model, mujoco.MjData(env.model)
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        states = np.zeros((self.episodes, mujoco.mj_stateSize(model, kind)))
        for row, seed in enumerate(reset_seeds(SEED, self.episodes)):
            env.reset(seed=seed)
            mujoco.mj_getState(model, env.data, states[row], kind)
        controls = np.repeat(self.actions.astype(np.float64), env.frame_skip, axis=1)
        simulator = mujoco_rollout.Rollout(nthread=0)
        return lambda: simulator.rollout(model, data, states, controls)

    def sync(self) -> Callable[[], Any]:
        """Gymnasium's synchronous vector environment, stepping alone: no policy, no storage."""
        name = env_id(self.vector.single.__name__)
        env = gym.make_vec(name, self.episodes, vectorization_mode="sync", **self.keywords)
        return lambda: _step_through(env, self.actions)


def measure(family: str, episodes: int, rounds: int) -> CollectionResult:
    """Time ``rounds`` rounds of every contender in turn, ``episodes`` episodes each."""
    contest = Contest(family, episodes)
    contenders: dict[str, Callable[[], Any]] = {
        "physics": contest.physics(),
        "collected": contest.collected,
        "sync": contest.sync(),
    }
    peer = _envpool(family, contest.actions)
    if peer is not None:
        contenders["envpool"] = peer
    times = _interleaved(contenders, rounds, episodes * HORIZON)
    ours = times["collected"]
    envpool = times.get("envpool")
    return CollectionResult(
        family=family,
        episodes=episodes,
        physics_us=float(np.median(times["physics"])),
        collected_us=float(np.median(ours)),
        ratio_to_physics=float(np.median(times["physics"] / ours)),
        sync_us=float(np.median(times["sync"])),
        speedup_over_sync=float(np.median(times["sync"] / ours)),
        envpool_us=None if envpool is None else float(np.median(envpool)),
        speedup_over_envpool=None if envpool is None else float(np.median(envpool / ours)),
    )


def physics_alone(family: str, episodes: int, rounds: int) -> float:
    """Microseconds per step of the physics alone, the median of ``rounds``."""
    physics = Contest(family, episodes).physics()
    times = _interleaved({"physics": physics}, rounds, episodes * HORIZON)
    return float(np.median(times["physics"]))


def _interleaved(
    contenders: dict[str, Callable[[], Any]], rounds: int, steps: int
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Microseconds per step of each contender, round by round; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append((time.perf_counter() - start) * 1e6 / steps)
    return {name: np.asarray(values[1:]) for name, values in times.items()}


def _step_through(env: VectorEnv[Any, Any, Any], actions: np.ndarray[Any, Any]) -> None:
    env.reset(seed=0)
    for step in range(actions.shape[1]):
        env.step(actions[:, step])


def _envpool(family: str, actions: np.ndarray[Any, Any]) -> Callable[[], Any] | None:
    """EnvPool on one thread, stepping alone; None where it is not installed or has no like."""
    try:
        import envpool
    except ImportError:
        return None
    if family not in ENVPOOL:
        return None
    env = envpool.make_gymnasium(ENVPOOL[family], num_envs=len(actions), num_threads=1)
    wide = actions.astype(np.float64)

    def step_through() -> None:
        env.reset()
        for step in range(wide.shape[1]):
            env.step(wide[:, step])

    return step_through
