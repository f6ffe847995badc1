"""Sample actions from a policy's outputs, for a batch of episodes.

All noise is drawn before the first step, so that an episode depends neither on the size of its
batch nor on which of its neighbors have ended.

Axes: T steps, K episodes, A action size, n the last axis of recorded actions (1 if discrete).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maml_ray.kernels.policy_forward import PolicyKernel
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec

Float32 = NDArray[np.float32]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class ActionSampler(Protocol):
    """Samples the actions of K episodes."""

    def act(self, step: int, observations: Float32) -> Float32:
        """Return actions (K, n), as recorded, at ``observations`` (K, D)."""

    def act_on_outputs(self, step: int, outputs: Float32) -> Float32:
        """Return actions (K, n) from the policy's ``outputs`` (K, A), which may be overwritten."""

    def kernel(self) -> PolicyKernel | None:
        """Return the policy and its noise for a compiled rollout.

        None for discrete actions, and where a kernel would round the environment's actions
        differently: actions that are not float32, or bounds rescaled to that are not symmetric.
        """

    def log_probs(self) -> Float32:
        """Return log-probabilities (T, K) of the actions sampled."""


def make_sampler(
    policy: NumpyPolicy, steps: int, episodes: int, rng: np.random.Generator | None
) -> ActionSampler:
    """Create a sampler for K episodes of at most T steps.

    Args:
        policy: the policy that acts.
        steps: T.
        episodes: K.
        rng: source of the noise; None for mean or most probable actions.
    """
    if policy.spec.discrete:
        return _CategoricalSampler(policy, steps, episodes, rng)
    return _GaussianSampler(policy, steps, episodes, rng)


def to_env_actions(spec: PolicySpec, actions: Float32) -> NDArray[Any]:
    """Convert recorded actions (..., n) to the environment's, in a new array.

    Everything that sends actions to an environment does so through this function. An environment
    that changes them in place changes no recorded action.

    Args:
        spec: the policy's scale and bounds of actions.
        actions: as recorded: as sampled, before scale and bounds.

    Returns:
        Continuous actions (..., A), multiplied by the scale, rescaled to the bounds or clipped to
        them, of the type that the environment's space has; or integers (...).
    """
    if spec.discrete:
        return actions[..., 0].astype(np.int64) + spec.first_action
    return spec.action_map.apply(actions).astype(spec.action_dtype, copy=False)


def from_env_actions(spec: PolicySpec, actions: NDArray[Any]) -> Float32:
    """Convert an environment's actions, (..., A) or integers (...), to recorded ones.

    Inverts :func:`to_env_actions` up to rounding; exactly without bounds if the scale is a power
    of two. A clipped action becomes one that is at its bound: see :func:`at_bounds`.
    """
    if spec.discrete:
        return (actions - spec.first_action)[..., None].astype(np.float32)
    to_env = spec.action_map
    recorded: Float32 = ((actions - to_env.offset) / to_env.factor).astype(np.float32)
    return recorded


def at_bounds(spec: PolicySpec, actions: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of an environment's actions (..., A) clipping may have moved to a bound."""
    to_env = spec.action_map
    return (actions <= to_env.low) | (actions >= to_env.high)


class _GaussianSampler:
    def __init__(
        self, policy: NumpyPolicy, steps: int, episodes: int, rng: np.random.Generator | None
    ) -> None:
        self._policy = policy
        self._standard_noise = np.zeros((steps, episodes, policy.spec.action_size), np.float32)
        if rng is not None:
            rng.standard_normal(dtype=np.float32, out=self._standard_noise)
        self._noise = self._standard_noise * policy.std

    def act(self, step: int, observations: Float32) -> Float32:
        return self.act_on_outputs(step, self._policy.forward(observations))

    def act_on_outputs(self, step: int, outputs: Float32) -> Float32:
        outputs += self._noise[step]
        return outputs

    def kernel(self) -> PolicyKernel | None:
        to_env = self._policy.spec.action_map
        if to_env.factor.dtype != np.float32 or to_env.offset.any():
            return None
        return PolicyKernel(self._policy.network, self._noise, to_env)

    def log_probs(self) -> Float32:
        noise, policy = self._standard_noise, self._policy
        constant = policy.log_std.sum() + policy.spec.action_size * _HALF_LOG_2PI
        squares = np.einsum("...a,...a->...", noise, noise)
        result: Float32 = (-0.5 * squares - constant).astype(np.float32)
        return result


class _CategoricalSampler:
    """Samples by the Gumbel-max trick: the largest logit plus noise is a draw of the softmax."""

    def __init__(
        self, policy: NumpyPolicy, steps: int, episodes: int, rng: np.random.Generator | None
    ) -> None:
        self._policy = policy
        shape = (steps, episodes, policy.spec.action_size)
        self._noise = np.zeros(shape, np.float32)
        if rng is not None:
            self._noise = rng.gumbel(size=shape).astype(np.float32)
        self._log_probs = np.zeros((steps, episodes), np.float32)
        self._rows = np.arange(episodes)

    def act(self, step: int, observations: Float32) -> Float32:
        return self.act_on_outputs(step, self._policy.forward(observations))

    def act_on_outputs(self, step: int, outputs: Float32) -> Float32:
        chosen = np.argmax(outputs + self._noise[step], axis=1)
        largest = outputs.max(axis=1)
        total = np.log(np.exp(outputs - largest[:, None]).sum(axis=1))
        self._log_probs[step] = outputs[self._rows, chosen] - largest - total
        actions: Float32 = chosen[:, None].astype(np.float32)
        return actions

    def kernel(self) -> None:
        return None

    def log_probs(self) -> Float32:
        return self._log_probs
