"""How close one rollout actor comes to the physics alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import VectorEnv
from mujoco import rollout as mujoco_rollout

from maml_ray.collection import collect
from maml_ray.config import Settings
from maml_ray.numpy_policy import NumpyPolicy
from maml_ray.policy import PolicySpec, initial_parameters, to_numpy
from maml_ray.tasks.distribution import Task
from maml_ray.tasks.half_cheetah import BACKWARD_ID, HalfCheetahBackward, HalfCheetahBackwardTasks

HORIZON = 200


@dataclass(frozen=True)
class CollectionResult:
    """Microseconds per environment step, the median of interleaved rounds.

    ``ratio_to_physics`` is the median of the rounds' ratios: 1 is the physical limit.
    """

    episodes: int
    physics_us: float
    collected_us: float
    ratio_to_physics: float
    sync_us: float
    speedup_over_sync: float
    envpool_us: float | None
    speedup_over_envpool: float | None


def measure(episodes: int, rounds: int) -> CollectionResult:
    """Time ``rounds`` rounds of every contender in turn, ``episodes`` episodes each."""
    env = HalfCheetahBackwardTasks().make_vector_env(
        Task("backward"), num_envs=episodes, horizon=HORIZON
    )
    spec = _spec(env)
    policy = NumpyPolicy(spec, to_numpy(initial_parameters(spec, np.random.default_rng(0))))
    actions = collect(policy, env, HORIZON, np.random.SeedSequence(0)).actions
    contenders: dict[str, Callable[[], Any]] = {
        "physics": _open_loop_physics(actions),
        "collected": lambda: collect(policy, env, HORIZON, np.random.SeedSequence(0)),
        "sync": _gymnasium_sync(actions),
    }
    peer = _envpool(actions)
    if peer is not None:
        contenders["envpool"] = peer
    times = _interleaved(contenders, rounds, episodes * HORIZON)
    ours = times["collected"]
    envpool = times.get("envpool")
    return CollectionResult(
        episodes=episodes,
        physics_us=float(np.median(times["physics"])),
        collected_us=float(np.median(ours)),
        ratio_to_physics=float(np.median(times["physics"] / ours)),
        sync_us=float(np.median(times["sync"])),
        speedup_over_sync=float(np.median(times["sync"] / ours)),
        envpool_us=None if envpool is None else float(np.median(envpool)),
        speedup_over_envpool=None if envpool is None else float(np.median(envpool / ours)),
    )


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


def physics_alone(episodes: int, rounds: int) -> float:
    """Microseconds per step of the physics alone, the median of ``rounds``."""
    env = HalfCheetahBackwardTasks().make_vector_env(
        Task("backward"), num_envs=episodes, horizon=HORIZON
    )
    spec = _spec(env)
    policy = NumpyPolicy(spec, to_numpy(initial_parameters(spec, np.random.default_rng(0))))
    physics = _open_loop_physics(collect(policy, env, HORIZON, np.random.SeedSequence(0)).actions)
    return float(
        np.median(_interleaved({"physics": physics}, rounds, episodes * HORIZON)["physics"])
    )


def _spec(env: VectorEnv[Any, Any, Any]) -> PolicySpec:
    return PolicySpec.from_spaces(
        Settings().policy, env.single_observation_space, env.single_action_space
    )


def _open_loop_physics(actions: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """``mujoco.rollout`` on this thread, with the very actions that collection took."""
    env = HalfCheetahBackward()
    model, data = env.model, mujoco.MjData(env.model)
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    states = np.zeros((len(actions), mujoco.mj_stateSize(model, kind)))
    for row in range(len(actions)):
        env.reset(seed=row)
        mujoco.mj_getState(model, env.data, states[row], kind)
    controls = np.repeat(actions.astype(np.float64), env.frame_skip, axis=1)
    simulator = mujoco_rollout.Rollout(nthread=0)
    return lambda: simulator.rollout(model, data, states, controls)


def _gymnasium_sync(actions: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """Gymnasium's synchronous vector environment, stepping alone: no policy, no storage."""
    env = gym.make_vec(BACKWARD_ID, len(actions), vectorization_mode="sync")
    return lambda: _step_through(env, actions)


def _step_through(env: VectorEnv[Any, Any, Any], actions: np.ndarray[Any, Any]) -> None:
    env.reset(seed=0)
    for step in range(actions.shape[1]):
        env.step(actions[:, step])


def _envpool(actions: np.ndarray[Any, Any]) -> Callable[[], Any] | None:
    """EnvPool's forward half-cheetah on one thread, stepping alone; None where not installed."""
    try:
        import envpool
    except ImportError:
        return None
    env = envpool.make_gymnasium("HalfCheetah-v4", num_envs=len(actions), num_threads=1)
    wide = actions.astype(np.float64)

    def step_through() -> None:
        env.reset()
        for step in range(wide.shape[1]):
            env.step(wide[:, step])

    return step_through
