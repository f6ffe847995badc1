"""Collect trajectories of a NumPy policy in a vector environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.config.sections import InnerSettings
from maml_ray.envs.user_errors import user_code
from maml_ray.envs.vector_env import BatchEnv
from maml_ray.policies.action_sampler import ActionSampler, make_sampler, to_env_actions
from maml_ray.policies.context import context_offsets, context_shifts
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.rollout_buffer import RolloutBuffer
from maml_ray.rollouts.step_reader import autoreset_mode
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
    info_metrics: Sequence[str] = (),
) -> Trajectories:
    """Roll out one episode of at most ``horizon`` steps in each of the K environments.

    All noise is drawn from ``seed`` before the first step, so that the result depends on the seed,
    the policy and the environment only. An episode fails if a number in it is not finite or MuJoCo
    has reset the simulation by itself; it is discarded and collected again from the next child of
    its seed, without changing the other episodes.

    Args:
        policy: policy that acts.
        env: K environments in any autoreset mode; they are reset first. An optional method
            ``failed() -> (K,) bool`` reports the simulations that failed since their reset; an
            optional method ``rollout`` runs whole episodes.
        horizon: T, maximum number of steps.
        seed: source of initial states and action noise.
        explore: sample actions; otherwise use the mean or most probable action.
        info_metrics: names of infos to average over the steps of an episode, besides "speed".

    Returns:
        Trajectories of K episodes and T steps.

    Raises:
        SimulationFailed: an episode failed ``MAX_ATTEMPTS`` times.
        UserCodeError: the environment raises an error.
        UserError: an info to average is not a number, or the environments reset themselves without
            giving an episode's last observation.
    """
    # Numbers that are not finite are detected afterwards; NumPy need not warn of them.
    with np.errstate(all="ignore"), user_code("the environment", among_ours=True):
        collected, failed = _collect_once(policy, env, horizon, seed, explore, info_metrics)
        for attempt in range(1, MAX_ATTEMPTS):
            if not failed.any():
                return collected
            retry, failed_again = _collect_once(
                policy, env, horizon, _child_seed(seed, 1 + attempt), explore, info_metrics
            )
            collected = _replace_episodes(collected, retry, failed)
            failed &= failed_again
    if failed.any():
        raise SimulationFailed(
            f"{np.count_nonzero(failed)} of {len(failed)} episodes failed {MAX_ATTEMPTS} times in "
            "a row: observations, rewards or actions were not finite, or MuJoCo gave up"
        )
    return collected


def collect_support(
    inner: InnerSettings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    normalizer: Normalizer | None,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    *,
    info_metrics: Sequence[str] = (),
) -> Trajectories:
    """Roll out the support episodes of an inner step, as :func:`collect` does.

    Of ``inner.parameters = context`` each episode acts with a context of its own.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        parameters: before the step: meta-parameters; after earlier steps also the context.
        normalizer: of observations; None for none.
        env, horizon, seed, info_metrics: see :func:`collect`.

    Raises:
        SimulationFailed, UserError: see :func:`collect`; or a context has less than two episodes.
    """
    if inner.parameters != "context":
        policy = NumpyPolicy(spec, parameters, normalizer)
        return collect(policy, env, horizon, seed, info_metrics=info_metrics)
    offsets = context_offsets(env.num_envs, inner.context_size)
    shifts = context_shifts(spec, parameters, offsets)
    policy = NumpyPolicy(spec, parameters, normalizer, shifts)
    collected = collect(policy, env, horizon, seed, info_metrics=info_metrics)
    return replace(collected, context_offsets=offsets)


def _collect_once(
    policy: NumpyPolicy,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    explore: bool,
    info_metrics: Sequence[str],
) -> tuple[Trajectories, NDArray[np.bool_]]:
    """Return trajectories, and (K,) which episodes must not be learned from."""
    episodes = env.num_envs
    rng = np.random.default_rng(_child_seed(seed, 1)) if explore else None
    sampler = make_sampler(policy, horizon, episodes, rng)
    observation, _ = env.reset(seed=seed_argument(env, reset_seeds(seed, episodes)))
    buffer = _run_rollout(env, policy, sampler, horizon, info_metrics)
    if buffer is None:
        dtype = _observation_dtype(env, policy)
        buffer = RolloutBuffer(policy.spec, horizon, episodes, dtype, info_metrics)
        _run_steps(env, policy, sampler, buffer, observation)
        buffer.failed |= buffer.alive & _failed_simulations(env)
    collected = buffer.to_trajectories(policy.normalizer, sampler.log_probs())
    return collected, buffer.failed | _not_finite(collected)


def _run_steps(
    env: VectorEnv[Any, Any, Any],
    policy: NumpyPolicy,
    sampler: ActionSampler,
    buffer: RolloutBuffer,
    observation: Any,
) -> None:
    """Step the environments from their first ``observation`` until all episodes have ended."""
    mode = autoreset_mode(env)
    for step in range(len(buffer.observations)):
        buffer.observations[step] = observation
        actions = sampler.act(step, buffer.observations[step])
        buffer.actions[step] = actions
        transition = env.step(to_env_actions(policy.spec, actions))
        observation = transition[0]
        ended = buffer.add_step(step, transition, mode)
        if ended is None:
            continue
        buffer.failed |= buffer.ending & _failed_simulations(env)
        if not buffer.alive.any():
            break
        if mode is AutoresetMode.DISABLED:
            # Such a batch refuses steps before what has ended is reset. The reset may reuse the
            # array of observations.
            observation = np.array(observation)
            env.reset(options={"reset_mask": ended})
    buffer.last_observation[:] = observation


def _observation_dtype(env: VectorEnv[Any, Any, Any], policy: NumpyPolicy) -> Any:
    """Return the type in which to record observations: float64 if they need to be rounded later.

    See :func:`maml_ray.common.normalization.as_float32`.
    """
    space = env.single_observation_space.dtype
    wide = np.result_type(np.float32 if space is None else space, np.float32)
    return np.float64 if wide == np.float64 and policy.normalizer is not None else np.float32


def _run_rollout(
    env: VectorEnv[Any, Any, Any],
    policy: NumpyPolicy,
    sampler: ActionSampler,
    horizon: int,
    info_metrics: Sequence[str],
) -> RolloutBuffer | None:
    """Run the whole episodes by ``env.rollout``; return None if the environment cannot."""
    rollout, kernel = getattr(env, "rollout", None), sampler.kernel()
    if rollout is None or kernel is None or policy.needs_float64:
        return None
    buffer = RolloutBuffer(policy.spec, horizon, env.num_envs, info_metrics=info_metrics)
    outcome = rollout(kernel, buffer.all_observations, buffer.actions)
    if outcome is None:
        return None
    buffer.add_rollout(outcome)
    return buffer


def _failed_simulations(env: VectorEnv[Any, Any, Any]) -> NDArray[np.bool_]:
    env_failed = getattr(env, "failed", None)
    failed: NDArray[np.bool_] = (
        np.zeros(env.num_envs, np.bool_) if env_failed is None else env_failed()
    )
    return failed


def _not_finite(collected: Trajectories) -> NDArray[np.bool_]:
    """Return (K,) which episodes contain numbers that are not finite."""
    failed = np.zeros(collected.episodes, np.bool_)
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
    missing = np.full(collected.episodes, np.nan, np.float32)
    info_means = {
        name: np.where(
            failed, retry.info_means.get(name, missing), collected.info_means.get(name, missing)
        )
        for name in {**collected.info_means, **retry.info_means}
    }
    discarded = collected.discarded + int(np.count_nonzero(failed))
    return replace(collected, **arrays, info_means=info_means, discarded=discarded)


def reset_seeds(seed: np.random.SeedSequence, episodes: int) -> list[int]:
    """Return the seeds that :func:`collect` resets its environments with, to replay an episode.

    They have 31 bits: ``numpy.random.RandomState`` takes at most 32, a C ``int`` 31.
    """
    return [int(word) >> 1 for word in _child_seed(seed, 0).generate_state(episodes, np.uint32)]


def seed_argument(env: VectorEnv[Any, Any, Any], seeds: list[int]) -> Any:
    """Return what ``env.reset`` takes of K seeds.

    The batches of Gymnasium and of this package take all; the interface of others, such as
    Gymnasium's vectorized CartPole, is one for the whole batch.
    """
    batch = getattr(env, "unwrapped", env)
    return seeds if isinstance(batch, SyncVectorEnv | AsyncVectorEnv | BatchEnv) else seeds[0]


def _child_seed(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Return a child stream: 0 for initial states, 1 for action noise, 2 and above for retries.

    ``SeedSequence.spawn`` counts its calls; a key gives the same child every time.
    """
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))
