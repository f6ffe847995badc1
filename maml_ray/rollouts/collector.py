"""Collection: a policy and a batch of environments give trajectories. No torch, no Ray."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.policies.action_sampler import ActionSampler, make_sampler, to_env_actions
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories

ATTEMPTS = 3
"""How often an episode is drawn before its task is given up: chance breaks a simulation once, and
a task or a policy that breaks three in a row will break the next."""


class SimulationFailed(UserError):
    """Episodes of a task break whenever they are drawn; the sentence says how many."""


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
    the policy and the environment, and on nothing else. An episode whose simulation breaks (a
    number that is not finite, or a state that MuJoCo itself has given up) is discarded, and drawn
    again from the next key of its stream; the other episodes stay as they are.

    Args:
        policy: who acts.
        env: K environments; it is reset here and must not reset itself within an episode's
            steps, other than behind its end, where everything is masked. It may tell by a method
            ``broken() -> (K,) bool`` which of its simulations have failed since their reset.
        horizon: T, the number of steps.
        seed: the stream for initial states and action noise.
        explore: sample actions; otherwise take the mean or the most probable action.

    Returns:
        Trajectories of K episodes and T steps.

    Raises:
        SimulationFailed: an episode broke as often as it was drawn.
    """
    # What is not a number is looked for afterwards: it needs no warnings on the way.
    with np.errstate(all="ignore"):
        collected = _attempt(policy, env, horizon, seed, explore)
        broken = _broken(collected, env)
        for attempt in range(1, ATTEMPTS):
            if not broken.any():
                return collected
            again = _attempt(policy, env, horizon, _child(seed, 1 + attempt), explore)
            collected = _with_rows(collected, again, broken)
            broken &= _broken(again, env)
    if broken.any():
        raise SimulationFailed(
            f"{np.count_nonzero(broken)} of {len(broken)} episodes broke {ATTEMPTS} times in a "
            "row: observations, rewards or actions were not finite, or MuJoCo gave it up"
        )
    return collected


def _attempt(
    policy: NumpyPolicy,
    env: VectorEnv[Any, Any, Any],
    horizon: int,
    seed: np.random.SeedSequence,
    explore: bool,
) -> Trajectories:
    episodes = env.num_envs
    rng = np.random.default_rng(_child(seed, 1)) if explore else None
    sampler = make_sampler(policy, horizon, episodes, rng)
    record = _Record(policy.spec, horizon, episodes)
    # Gymnasium's vector environments take a list of seeds; their base class is annotated without.
    observation, _ = env.reset(seed=reset_seeds(seed, episodes))  # type: ignore[arg-type]
    if _played(env, sampler, record):
        return record.trajectories(record.last, sampler.log_probs())
    for step in range(horizon):
        seen = record.observations[step]
        seen[:] = observation
        actions = sampler.act(step, seen)
        record.actions[step] = actions
        outcome = env.step(to_env_actions(policy.spec, actions))
        observation = outcome[0]
        if record.note(step, outcome):
            break
    return record.trajectories(observation, sampler.log_probs())


def _played(env: VectorEnv[Any, Any, Any], sampler: ActionSampler, record: _Record) -> bool:
    """Have ``env`` play whole episodes by itself, where it can; whether it could."""
    play, player = getattr(env, "play", None), sampler.kernel()
    if play is None or player is None:
        return False
    outcome = play(player, record.observations_and_last, record.actions)
    if outcome is None:
        return False
    record.note_all(*outcome)
    return True


def _broken(collected: Trajectories, env: VectorEnv[Any, Any, Any]) -> NDArray[np.bool_]:
    """(K,) which episodes are not to be learned from."""
    tell = getattr(env, "broken", None)
    broken = np.zeros(collected.episodes, np.bool_) if tell is None else np.array(tell(), np.bool_)
    for name in _FIGURES:
        figures = getattr(collected, name)
        if figures is not None and not np.isfinite(figures).all():
            broken |= ~np.isfinite(figures).reshape(collected.episodes, -1).all(axis=1)
    return broken


_FIGURES = ("observations", "actions", "log_probs", "rewards", "final_observations", "speeds")


def _with_rows(
    collected: Trajectories, again: Trajectories, rows: NDArray[np.bool_]
) -> Trajectories:
    """``collected`` with the episodes ``rows`` (K,) of ``again``, and as many more discarded."""
    arrays: dict[str, Any] = {}
    for field in fields(Trajectories):
        old, new = getattr(collected, field.name), getattr(again, field.name)
        if isinstance(old, np.ndarray):
            arrays[field.name] = np.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    discarded = collected.discarded + int(np.count_nonzero(rows))
    return replace(collected, **arrays, discarded=discarded)


class _Record:
    """The arrays of a collection under way.

    Time is the first axis, so that each step writes one contiguous block.
    """

    def __init__(self, spec: PolicySpec, horizon: int, episodes: int) -> None:
        size = spec.observation_size
        self.observations_and_last = np.zeros((horizon + 1, episodes, size), dtype=np.float32)
        self.observations = self.observations_and_last[:-1]
        self.last = self.observations_and_last[-1]
        self.actions = np.zeros((horizon, episodes, spec.recorded_action_size), dtype=np.float32)
        self._rewards = np.zeros((horizon, episodes), dtype=np.float32)
        self._speeds = np.zeros((horizon, episodes), dtype=np.float32)
        self._mask = np.zeros((horizon, episodes), dtype=np.bool_)
        self._knows_speed = False
        self._alive = np.ones(episodes, dtype=np.bool_)
        self._terminated = np.zeros(episodes, dtype=np.bool_)
        self._final_observations = np.zeros((episodes, size), dtype=np.float32)

    def note(self, step: int, outcome: tuple[Any, Any, Any, Any, dict[str, Any]]) -> bool:
        """Write down what ``env.step`` gave; whether all episodes have ended."""
        observation, reward, terminated, truncated, info = outcome
        self._rewards[step] = reward
        self._mask[step] = self._alive
        if "speed" in info:
            self._speeds[step] = info["speed"]
            self._knows_speed = True
        ended = terminated | truncated
        if not np.count_nonzero(ended):  # several times faster than any()
            return False
        ending = self._alive & ended
        self._final_observations[ending] = observation[ending]
        self._terminated |= ending & terminated
        self._alive &= ~ended
        return not self._alive.any()

    def note_all(self, rewards: NDArray[Any], speeds: NDArray[Any]) -> None:
        """Write down what all steps (T, K) gave, of episodes that have not ended."""
        self._rewards[:], self._speeds[:] = rewards, speeds
        self._mask[:] = self._knows_speed = True

    def trajectories(
        self, observation: NDArray[Any], log_probs: NDArray[np.float32]
    ) -> Trajectories:
        """What was collected; ``observation`` is the last one seen."""
        self._final_observations[self._alive] = observation[self._alive]
        if not self._mask.all():
            # What comes behind an episode's end may be anything, and NaN times zero is NaN.
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
            speeds=self._speeds.sum(axis=0) / lengths if self._knows_speed else None,
        )


def reset_seeds(seed: np.random.SeedSequence, episodes: int) -> list[int]:
    """The seeds that :func:`collect` resets its environments with: to replay an episode."""
    return [int(word) for word in _child(seed, 0).generate_state(episodes, np.uint64)]


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A stream within a stream: 0 for initial states, 1 for action noise, 2 on to draw again.

    By key and not by ``spawn``, which counts its calls: the same seed gives the same.
    """
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))


def _episodes_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.swapaxes(0, 1))
