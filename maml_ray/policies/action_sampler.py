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

from maml_ray.kernels.policy_forward import PolicyKernel, scale_actions
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
        """Return the policy and its noise for a compiled rollout; None for discrete actions."""

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
    """Convert recorded actions (..., n) to the environment's: scaled, or integers (...)."""
    if spec.discrete:
        return actions[..., 0].astype(np.int64) + spec.first_action
    return scale_actions(actions, spec.action_scale)


def from_env_actions(spec: PolicySpec, actions: NDArray[Any]) -> Float32:
    """Convert an environment's actions, (..., A) or integers (...), to recorded ones.

    Inverts :func:`to_env_actions`: exactly if the scale is a power of two, else up to rounding.
    """
    if spec.discrete:
        return (actions - spec.first_action)[..., None].astype(np.float32)
    recorded = actions.astype(np.float32)
    return recorded if spec.action_scale == 1.0 else recorded / np.float32(spec.action_scale)


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

    def kernel(self) -> PolicyKernel:
        scale = np.float32(self._policy.spec.action_scale)
        return PolicyKernel(self._policy.network, self._noise, scale)

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
