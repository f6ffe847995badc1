"""Collect trajectories of a NumPy policy in a vector environment."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.envs.user_errors import user_code
from maml_ray.policies.action_sampler import ActionSampler, make_sampler, to_env_actions
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories

MAX_ATTEMPTS = 3
"""Attempts at an episode before collection fails. One failure may be chance; a task or a policy
that makes a simulation fail three times in a row will do so again."""

_FLOAT_ARRAYS = (
    "observations",
    "actions",
    "log_probs",
    "rewards",
    "final_observations",
    "speeds",
)


class SimulationFailed(UserError):
    """Episodes of a task failed in every attempt; the message says how many."""


def collect(
    policy: NumpyPolicy,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    *,
    explore: bool = True,
) -> Trajectories:
    """Roll out one episode of at most ``horizon`` steps in each of the K environments.

    All noise is drawn from ``seed`` before the first step, so that the result depends on the seed,
    the policy and the environment only. An episode fails if a number in it is not finite or MuJoCo
    has reset the simulation by itself; it is discarded and collected again from the next child of
    its seed, without changing the other episodes.

    Args:
        policy: policy that acts.
        env: K environments; they are reset first, and must not reset themselves before the end of
            an episode. An optional method ``failed() -> (K,) bool`` reports the simulations that
            failed since their reset; an optional method ``rollout`` runs whole episodes.
        horizon: T, maximum number of steps.
        seed: source of initial states and action noise.
        explore: sample actions; otherwise use the mean or most probable action.

    Returns:
        Trajectories of K episodes and T steps.

    Raises:
        SimulationFailed: an episode failed ``MAX_ATTEMPTS`` times.
        UserCodeError: the environment raises an error.
    """
    # Numbers that are not finite are detected afterwards; NumPy need not warn of them.
    with np.errstate(all="ignore"), user_code("the environment"):
        collected = _collect_once(policy, env, horizon, seed, explore)
        failed = _failed_episodes(collected, env)
        for attempt in range(1, MAX_ATTEMPTS):
            if not failed.any():
                return collected
            retry = _collect_once(policy, env, horizon, _child_seed(seed, 1 + attempt), explore)
            collected = _replace_episodes(collected, retry, failed)
            failed &= _failed_episodes(retry, env)
    if failed.any():
        raise SimulationFailed(
            f"{np.count_nonzero(failed)} of {len(failed)} episodes failed {MAX_ATTEMPTS} times in "
            "a row: observations, rewards or actions were not finite, or MuJoCo gave up"
        )
    return collected


def _collect_once(
    policy: NumpyPolicy,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    explore: bool,
) -> Trajectories:
    episodes = env.num_envs
    rng = np.random.default_rng(_child_seed(seed, 1)) if explore else None
    sampler = make_sampler(policy, horizon, episodes, rng)
    buffer = _RolloutBuffer(policy.spec, horizon, episodes)
    # Gymnasium's vector environments accept a list of seeds, which its annotation omits.
    observation, _ = env.reset(seed=reset_seeds(seed, episodes))  # type: ignore[arg-type]
    if _run_compiled_rollout(env, sampler, buffer):
        return buffer.to_trajectories(buffer.last_observation, sampler.log_probs())
    for step in range(horizon):
        buffer.observations[step] = observation
        actions = sampler.act(step, buffer.observations[step])
        buffer.actions[step] = actions
        transition = env.step(to_env_actions(policy.spec, actions))
        observation = transition[0]
        if buffer.add_step(step, transition):
            break
    return buffer.to_trajectories(observation, sampler.log_probs())


def _run_compiled_rollout(
    env: VectorEnv[Any, Any, Any], sampler: ActionSampler, buffer: _RolloutBuffer
) -> bool:
    """Run the whole episodes by ``env.rollout``; return False if the environment cannot."""
    rollout, kernel = getattr(env, "rollout", None), sampler.kernel()
    if rollout is None or kernel is None:
        return False
    outcome = rollout(kernel, buffer.all_observations, buffer.actions)
    if outcome is None:
        return False
    buffer.add_all_steps(*outcome)
    return True


def _failed_episodes(collected: Trajectories, env: VectorEnv[Any, Any, Any]) -> NDArray[np.bool_]:
    """Return (K,) which episodes must not be learned from."""
    env_failed = getattr(env, "failed", None)
    failed = np.zeros(collected.episodes, np.bool_)
    if env_failed is not None:
        failed |= env_failed()
    for name in _FLOAT_ARRAYS:
        array = getattr(collected, name)
        if array is not None and not np.isfinite(array).all():
            failed |= ~np.isfinite(array).reshape(collected.episodes, -1).all(axis=1)
    return failed


def _replace_episodes(
    collected: Trajectories, retry: Trajectories, failed: NDArray[np.bool_]
) -> Trajectories:
    """Return ``collected`` with its ``failed`` (K,) episodes taken from ``retry``."""
    arrays: dict[str, Any] = {}
    for field in fields(Trajectories):
        old, new = getattr(collected, field.name), getattr(retry, field.name)
        if isinstance(old, np.ndarray):
            arrays[field.name] = np.where(failed.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    discarded = collected.discarded + int(np.count_nonzero(failed))
    return replace(collected, **arrays, discarded=discarded)


class _RolloutBuffer:
    """Arrays of the steps collected so far, time first so that a step writes contiguous memory.

    Attributes:
        all_observations: (T + 1, K, D), the observation after the last step included.
        observations: (T, K, D), a view.
        last_observation: (K, D), a view.
        actions: (T, K, A) as recorded.
    """

    def __init__(self, spec: PolicySpec, horizon: int, episodes: int) -> None:
        size = spec.observation_size
        self.all_observations = np.zeros((horizon + 1, episodes, size), dtype=np.float32)
        self.observations = self.all_observations[:-1]
        self.last_observation = self.all_observations[-1]
        self.actions = np.zeros((horizon, episodes, spec.recorded_action_size), dtype=np.float32)
        self._rewards = np.zeros((horizon, episodes), dtype=np.float32)
        self._speeds = np.zeros((horizon, episodes), dtype=np.float32)
        self._mask = np.zeros((horizon, episodes), dtype=np.bool_)
        self._has_speeds = False
        self._alive = np.ones(episodes, dtype=np.bool_)
        self._terminated = np.zeros(episodes, dtype=np.bool_)
        self._final_observations = np.zeros((episodes, size), dtype=np.float32)

    def add_step(self, step: int, transition: tuple[Any, Any, Any, Any, dict[str, Any]]) -> bool:
        """Record what ``env.step`` returned; return whether all episodes have ended."""
        observation, reward, terminated, truncated, info = transition
        self._rewards[step] = reward
        self._mask[step] = self._alive
        if "speed" in info:
            self._speeds[step] = info["speed"]
            self._has_speeds = True
        ended = terminated | truncated
        if not np.count_nonzero(ended):  # several times faster than any()
            return False
        ending = self._alive & ended
        self._final_observations[ending] = observation[ending]
        self._terminated |= ending & terminated
        self._alive &= ~ended
        return not self._alive.any()

    def add_all_steps(self, rewards: NDArray[Any], speeds: NDArray[Any]) -> None:
        """Record rewards and speeds (T, K) of complete episodes without an early end."""
        self._rewards[:], self._speeds[:] = rewards, speeds
        self._mask[:] = self._has_speeds = True

    def to_trajectories(
        self, observation: NDArray[Any], log_probs: NDArray[np.float32]
    ) -> Trajectories:
        """Return the trajectories; ``observation`` (K, D) is the one after the last step."""
        self._final_observations[self._alive] = observation[self._alive]
        if not self._mask.all():
            # Entries after an episode's end may be NaN, which a zero weight would not remove.
            for array in (self._rewards, self.observations, self.actions, log_probs, self._speeds):
                array[~self._mask] = 0.0
        lengths = self._mask.sum(axis=0, dtype=np.float32)
        return Trajectories(
            observations=_episodes_first(self.observations),
            actions=_episodes_first(self.actions),
            log_probs=_episodes_first(log_probs),
            rewards=_episodes_first(self._rewards),
            mask=_episodes_first(self._mask),
            final_observations=self._final_observations,
            terminated=self._terminated,
            speeds=self._speeds.sum(axis=0) / lengths if self._has_speeds else None,
        )


def reset_seeds(seed: np.random.SeedSequence, episodes: int) -> list[int]:
    """Return the seeds that :func:`collect` resets its environments with, to replay an episode.

    They have 31 bits: ``numpy.random.RandomState`` takes at most 32, a C ``int`` 31.
    """
    return [int(word) >> 1 for word in _child_seed(seed, 0).generate_state(episodes, np.uint32)]


def _child_seed(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Return a child stream: 0 for initial states, 1 for action noise, 2 and above for retries.

    ``SeedSequence.spawn`` counts its calls; a key gives the same child every time.
    """
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))


def _episodes_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.swapaxes(0, 1))
