"""Acting: how a policy's outputs become actions, over a batch of episodes and step after step.

All noise is drawn beforehand, so that an episode does not depend on how many ran beside it or on
which of them have ended.

Axes: T steps, K episodes, A action size, n the last axis of recorded actions (1 where discrete).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maml_ray.kernels.policy_forward import PolicyKernel, scaled
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec

Float32 = NDArray[np.float32]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Sampler(Protocol):
    """Chooses the actions of K episodes."""

    def act(self, step: int, observations: Float32) -> Float32:
        """Actions (K, n) at ``observations`` (K, D), as recorded."""

    def choose(self, step: int, outputs: Float32) -> Float32:
        """The same of the policy's ``outputs`` (K, A) there, which may be written to."""

    def player(self) -> PolicyKernel | None:
        """The same for a batch that plays whole episodes by itself; None where it is no such."""

    def log_probs(self) -> Float32:
        """Log-probabilities (T, K) of the actions chosen."""


def make_sampler(
    policy: NumpyPolicy, steps: int, episodes: int, rng: np.random.Generator | None
) -> Sampler:
    """A sampler for ``episodes`` of at most ``steps``.

    Args:
        policy: whose actions.
        steps: T.
        episodes: K.
        rng: for the noise; None for mean actions, or the most probable ones.
    """
    if policy.spec.discrete:
        return _CategoricalSampler(policy, steps, episodes, rng)
    return _GaussianSampler(policy, steps, episodes, rng)


def for_environment(spec: PolicySpec, actions: Float32) -> NDArray[Any]:
    """Recorded actions (..., n) as the environment takes them: scaled, or (...) integers."""
    if spec.discrete:
        return actions[..., 0].astype(np.int64) + spec.first_action
    return scaled(actions, spec.action_scale)


def as_recorded(spec: PolicySpec, actions: NDArray[Any]) -> Float32:
    """The other way round: what an environment was given, (..., A) or integers (...), as recorded.

    To the bit where the scale is a power of two, and else up to rounding.
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
        self._noise = np.zeros((steps, episodes, policy.spec.action_size), dtype=np.float32)
        if rng is not None:
            rng.standard_normal(dtype=np.float32, out=self._noise)
        self._deviations = self._noise * policy.std

    def act(self, step: int, observations: Float32) -> Float32:
        return self.choose(step, self._policy.outputs(observations))

    def choose(self, step: int, outputs: Float32) -> Float32:
        outputs += self._deviations[step]
        return outputs

    def player(self) -> PolicyKernel:
        scale = np.float32(self._policy.spec.action_scale)
        return PolicyKernel(self._policy.perceptron, self._deviations, scale)

    def log_probs(self) -> Float32:
        noise, policy = self._noise, self._policy
        constant = policy.log_std.sum() + policy.spec.action_size * _HALF_LOG_2PI
        squares = np.einsum("...a,...a->...", noise, noise)
        result: Float32 = (-0.5 * squares - constant).astype(np.float32)
        return result


class _CategoricalSampler:
    """Gumbel's trick: the largest of logits plus Gumbel noise is a draw from their softmax."""

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
        return self.choose(step, self._policy.outputs(observations))

    def choose(self, step: int, outputs: Float32) -> Float32:
        chosen = np.argmax(outputs + self._noise[step], axis=1)
        largest = outputs.max(axis=1)
        total = np.log(np.exp(outputs - largest[:, None]).sum(axis=1))
        self._log_probs[step] = outputs[self._rows, chosen] - largest - total
        actions: Float32 = chosen[:, None].astype(np.float32)
        return actions

    def player(self) -> None:
        return None

    def log_probs(self) -> Float32:
        return self._log_probs
