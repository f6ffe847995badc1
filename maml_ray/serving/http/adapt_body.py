"""Parse and check the bodies of ``POST /adapt`` and ``POST /support``; convert trajectories.

Axes: K episodes, T steps, D observation size, A action size, C numbers of the context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from maml_ray.common.normalization import normalize
from maml_ray.common.numbers import MAX_MAGNITUDE
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import distribution, log_prob, to_torch
from maml_ray.policies.action_sampler import at_bounds, from_env_actions
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.serving.http.arrays import BoolArray, FloatArray, ObservationArray, wrong_shape
from maml_ray.serving.http.bodies import BASE_POLICY, INTEGER, Name, Seed, StrictBody, parse_body
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.limits import BodyLimits, RequestLimits

MAX_TEXT = 200
"""Longest text among a task's parameters, in characters."""
MAX_SUPPORT_EPISODES = 1000
"""Most episodes of a request to ``POST /support``, which may store a policy for each."""
SUPPORT_LIMITS = BodyLimits(10_000, 100, "the body holds more than policy and episodes")
"""Limits of the body of ``POST /support``."""
_OTHER_VALUES = 10_000
"""Room for the values of a body that are not in its trajectories."""


def _to_parameter(value: Any) -> Any:
    """Return a parameter of a task.

    Raises:
        ValueError: it is neither a finite number nor a short text.
    """
    if type(value) in (int, float, bool) and abs(value) <= MAX_MAGNITUDE:
        return value
    if type(value) is str and len(value) <= MAX_TEXT:
        return value
    raise ValueError(f"must be a number (finite, at most {MAX_MAGNITUDE:g}) or a text")


Parameter = Annotated[
    Any, PlainValidator(_to_parameter), WithJsonSchema({"type": ["number", "boolean", "string"]})
]
Floating = TypeVar("Floating", bound=np.floating)


class SupportBody(StrictBody):
    """Episodes collected by the caller, with the fields of :class:`maml_ray.Trajectories`.

    Samples and actions are as returned by ``POST /act``: (K, T, A), or (K, T) for a discrete
    policy. One of them is needed; actions that were clipped do not tell what was sampled. Policies
    that adapt a context need the context offsets (K, C) that ``POST /support`` returns.
    """

    observations: ObservationArray
    samples: FloatArray = None
    actions: FloatArray = None
    rewards: FloatArray
    mask: BoolArray = None
    log_probs: FloatArray = None
    final_observations: ObservationArray = None
    terminated: BoolArray = None
    context_offsets: FloatArray = None

    @model_validator(mode="after")
    def _check_actions(self) -> SupportBody:
        if (self.samples is None) is (self.actions is None):
            raise ValueError("give either samples or actions, as POST /act returns them")
        return self


class AdaptBody(StrictBody):
    """Body of ``POST /adapt``: a task to simulate, trajectories of the caller, or both."""

    policy: Name = BASE_POLICY
    task: Annotated[dict[Name, Parameter], Field(max_length=1000)] | None = None
    trajectories: SupportBody | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_ADAPTATION_STEPS), INTEGER] | None = None
    episodes: Annotated[int, Field(ge=1), INTEGER] | None = None
    measured_episodes: Annotated[int, Field(ge=0), INTEGER] = 20
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_combination(self) -> AdaptBody:
        if self.task is None and self.trajectories is None:
            raise ValueError("the body needs a task, or trajectories of your own")
        if self.trajectories is not None and (self.steps or self.episodes):
            raise ValueError(
                "steps and episodes apply to simulated support data only: trajectories of your "
                "own give one step, and the next step is another request"
            )
        return self


class SupportPoliciesBody(StrictBody):
    """Body of ``POST /support``: the policy to adapt, and the episodes of a support set."""

    policy: Name = BASE_POLICY
    episodes: Annotated[int, Field(ge=1, le=MAX_SUPPORT_EPISODES), INTEGER] | None = None


def adapt_limits(spec: PolicySpec, context_size: int | None, limits: RequestLimits) -> BodyLimits:
    """Return the limits of the body of ``POST /adapt``.

    Args:
        spec: sizes of the policies.
        context_size: C; None for policies without a context.
        limits: limits of requests.
    """
    # Rewards, mask, log-probabilities, and the rows of observations and actions.
    per_step = spec.observation_size + spec.action_size + 5
    # The row and the numbers of final observations, terminated, and the rows of the others.
    per_episode = spec.observation_size + 7
    if context_size is not None:
        per_episode += context_size + 1
    steps = limits.max_trajectory_steps
    return BodyLimits(
        limits.max_body_bytes,
        steps * (per_step + per_episode) + _OTHER_VALUES,
        f"trajectories: the body holds more numbers than {steps:,} steps need, which are the most "
        "allowed per request",
    )


def parse_adapt(content: bytes | bytearray, limits: RequestLimits) -> AdaptBody:
    """Parse the body of ``POST /adapt``; :func:`to_trajectories` checks the shapes of arrays.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    body = parse_body(AdaptBody, content, nested=SupportBody)
    if body.trajectories is not None:
        _check_steps(body.trajectories, limits)
    return body


def parse_support(content: bytes | bytearray) -> SupportPoliciesBody:
    """Parse the body of ``POST /support``.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    return parse_body(SupportPoliciesBody, content)


def _check_steps(support: SupportBody, limits: RequestLimits) -> None:
    shape = support.rewards.shape
    if len(shape) == 1:
        return  # the error is found with those of the other shapes
    if shape[1] > limits.max_episode_steps:
        raise ApiError(
            422,
            f"trajectories: at most {limits.max_episode_steps:,} steps per episode are allowed, "
            f"got {shape[1]:,}",
        )
    if shape[0] * shape[1] > limits.max_trajectory_steps:
        raise ApiError(
            422,
            f"trajectories: at most {limits.max_trajectory_steps:,} steps (episodes times steps) "
            f"per request are allowed, got {shape[0] * shape[1]:,}",
        )


def to_trajectories(body: SupportBody, agent: Agent) -> Trajectories:
    """Convert the caller's episodes to support data for ``agent``.

    Without ``log_probs`` the actions are taken to be sampled by ``agent``, and its own
    log-probabilities are used. A step of a context uses none: those that are missing are NaN.

    Raises:
        ApiError: the shapes do not match each other or the policy, or the mask is invalid.
    """
    spec, rewards = agent.spec, body.rewards
    if rewards.ndim != 2:
        raise wrong_shape("rewards", "(episodes, steps)", rewards)
    shape = rewards.shape
    action_shape = shape if spec.discrete else (*shape, spec.action_size)
    shapes: dict[str, tuple[int, ...]] = {
        "observations": (*shape, spec.observation_size),
        "samples": action_shape,
        "actions": action_shape,
        "mask": shape,
        "log_probs": shape,
        "final_observations": (shape[0], spec.observation_size),
        "terminated": (shape[0],),
    }
    if agent.context_size is not None:
        shapes["context_offsets"] = (shape[0], agent.context_size)
    for name, expected in shapes.items():
        array = getattr(body, name)
        if array is not None and array.shape != expected:
            raise wrong_shape(f"trajectories.{name}", str(expected), array)
    mask = np.ones(shape, np.bool_) if body.mask is None else body.mask
    _check_mask(mask)
    _check_bootstrap(body, agent)
    _check_context(body, agent)
    needs_float64 = agent.normalizer is not None and agent.normalizer.needs_float64
    dtype = np.float64 if needs_float64 else np.float32
    trajectories = Trajectories(
        observations=_zero_masked(body.observations.astype(dtype, copy=False), mask),
        actions=_zero_masked(_recorded_actions(body, mask, spec), mask),
        log_probs=_zero_masked(rewards if body.log_probs is None else body.log_probs, mask),
        rewards=_zero_masked(rewards, mask),
        mask=mask,
        final_observations=(
            None if body.final_observations is None else body.final_observations.astype(dtype)
        ),
        terminated=body.terminated,
        context_offsets=body.context_offsets,
    )
    if body.log_probs is not None:
        return trajectories
    if agent.context_size is not None:
        return replace(trajectories, log_probs=np.full(shape, np.nan, np.float32))
    return replace(trajectories, log_probs=policy_log_probs(agent, trajectories))


def policy_log_probs(agent: Agent, trajectories: Trajectories) -> NDArray[np.float32]:
    """Return log-probabilities (K, T) of the actions under ``agent``, zero after an episode."""
    observations = normalize(trajectories.observations, agent.normalizer)
    with torch.no_grad():
        policy = distribution(
            agent.spec, to_torch(agent.parameters), torch.from_numpy(observations)
        )
        log_probs = log_prob(policy, torch.from_numpy(trajectories.actions)).numpy()
    return _zero_masked(log_probs, trajectories.mask)


def _check_mask(mask: NDArray[np.bool_]) -> None:
    if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ApiError(
            422,
            "trajectories.mask must be true for the steps of each episode, at least one, and "
            "false after its end",
        )


def _check_bootstrap(body: SupportBody, agent: Agent) -> None:
    if not agent.settings.advantages.bootstrap_time_limit:
        return
    for name in ("final_observations", "terminated"):
        if getattr(body, name) is None:
            raise ApiError(
                422,
                f"trajectories.{name} is missing: this policy was trained with "
                "advantages.bootstrap_time_limit",
            )


def _check_context(body: SupportBody, agent: Agent) -> None:
    if agent.context_size is None and body.context_offsets is not None:
        raise ApiError(
            422,
            "trajectories.context_offsets is not for this policy, which has no context "
            f"(inner.parameters = {agent.settings.inner.parameters}): leave it out",
        )
    if agent.context_size is not None and body.context_offsets is None:
        raise ApiError(
            422,
            "trajectories.context_offsets is missing: this policy adapts a context, and each "
            "episode acts with its own: POST /support returns the policies to act with, and their "
            "context_offsets",
        )


def _recorded_actions(
    body: SupportBody, mask: NDArray[np.bool_], spec: PolicySpec
) -> NDArray[np.float32]:
    """Return the actions as sampled; after an episode's end any value is accepted."""
    name = "actions" if body.samples is None else "samples"
    sent: NDArray[np.float32] = getattr(body, name)
    if spec.discrete:
        first, last = spec.first_action, spec.first_action + spec.action_size - 1
        sent = np.where(mask, sent, np.float32(first))
        if (sent != np.floor(sent)).any() or sent.min() < first or sent.max() > last:
            raise ApiError(422, f"trajectories.{name} must be whole numbers from {first} to {last}")
        return from_env_actions(spec, sent)
    if name == "samples":
        return sent
    if at_bounds(spec, sent)[mask].any():
        raise ApiError(
            422,
            "trajectories.actions lie at the environment's bounds, where they do not tell what the "
            "policy sampled: send samples instead, which POST /act returns too",
        )
    return from_env_actions(spec, sent)


def _zero_masked(array: NDArray[Floating], mask: NDArray[np.bool_]) -> NDArray[Floating]:
    """Set values after an episode's end to zero, as :class:`Trajectories` requires."""
    zero = array.dtype.type(0.0)
    return np.where(mask if array.ndim == 2 else mask[..., None], array, zero)
