"""Collection: a policy and a batch of environments give trajectories. No torch, no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from maml_ray.policy import NumpyPolicy
from maml_ray.trajectories import Trajectories


def collect(
    policy: NumpyPolicy,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    *,
    explore: bool = True,
) -> Trajectories:
    """Roll out one episode in each of the K environments of ``env``, for ``horizon`` steps at most.

    All noise is drawn before the first step from ``seed``, so the result depends on the seed,
    the policy and the environment, and on nothing else.

    Args:
        policy: maps observations (K, D) to mean actions (K, A) and knows its noise's size.
        env: K environments; it is reset here and must not reset itself within an episode's
            steps, other than behind its end, where everything is masked.
        horizon: T, the number of steps.
        seed: the stream for initial states and action noise.
        explore: sample actions; otherwise take the mean action.

    Returns:
        Trajectories of K episodes and T steps.
    """
    episodes, spec = env.num_envs, policy.spec
    noise_seed = _streams(seed)[1]
    noise = np.zeros((horizon, episodes, spec.action_size), dtype=np.float32)
    if explore:
        np.random.default_rng(noise_seed).standard_normal(dtype=np.float32, out=noise)
    # Time is the first axis while collecting, so that each step writes one contiguous block.
    observations = np.zeros((horizon, episodes, spec.observation_size), dtype=np.float32)
    actions = noise * policy.std
    rewards = np.zeros((horizon, episodes), dtype=np.float32)
    mask = np.zeros((horizon, episodes), dtype=np.bool_)
    speeds = np.zeros((horizon, episodes), dtype=np.float32)
    final_observations = np.zeros((episodes, spec.observation_size), dtype=np.float32)
    ended_by_itself = np.zeros(episodes, dtype=np.bool_)
    knows_speed = False

    alive = np.ones(episodes, dtype=np.bool_)
    # Gymnasium's vector environments take a list of seeds; their base class is annotated without.
    observation, _ = env.reset(seed=reset_seeds(seed, episodes))  # type: ignore[arg-type]
    for step in range(horizon):
        observations[step] = observation
        actions[step] += policy.mean(observations[step])
        observation, reward, terminated, truncated, info = env.step(actions[step])
        rewards[step] = reward
        mask[step] = alive
        if "speed" in info:
            speeds[step] = info["speed"]
            knows_speed = True
        ended = terminated | truncated
        if np.count_nonzero(ended):  # several times faster than any()
            ending = alive & ended
            final_observations[ending] = observation[ending]
            ended_by_itself |= ending & terminated
            alive &= ~ended
            if not alive.any():
                break
    final_observations[alive] = observation[alive]
    rewards[~mask] = 0.0
    observations[~mask] = 0.0
    speeds[~mask] = 0.0
    return Trajectories(
        observations=_episodes_first(observations),
        actions=_episodes_first(actions),
        log_probs=_episodes_first(policy.log_prob_of_noise(noise)),
        rewards=_episodes_first(rewards),
        mask=_episodes_first(mask),
        final_observations=final_observations,
        terminated=ended_by_itself,
        speeds=speeds.sum(axis=0) / mask.sum(axis=0, dtype=np.float32) if knows_speed else None,
    )


def reset_seeds(seed: np.random.SeedSequence, episodes: int) -> list[int]:
    """The seeds that :func:`collect` resets its environments with: to replay an episode."""
    return [int(word) for word in _streams(seed)[0].generate_state(episodes, np.uint64)]


def _streams(seed: np.random.SeedSequence) -> list[np.random.SeedSequence]:
    """Streams for initial states and for action noise.

    Children by key and not by ``spawn``, which counts its calls: the same seed gives the same.
    """
    return [
        np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, child))
        for child in range(2)
    ]


def _episodes_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.swapaxes(0, 1))
