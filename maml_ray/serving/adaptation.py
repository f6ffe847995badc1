"""Adapt a served policy: to a task simulated by the service, or to the caller's trajectories."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.evaluation.adaptation_stats import AdaptationStats, adaptation_stats
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.runs.adapt import (
    AFTER,
    BEFORE,
    adapt_in_simulation,
    mean_return,
)
from maml_ray.serving.http.adapt_body import AdaptBody, parse_adapt, to_trajectories
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.limits import RequestLimits
from maml_ray.serving.served_policy import ServedPolicy, new_policy_name
from maml_ray.tasks.task import Task

FindPolicy = Callable[[str], ServedPolicy]
AddPolicy = Callable[[ServedPolicy], Awaitable[float]]
"""Stores a policy and returns its lifetime in seconds."""


@dataclass(frozen=True, eq=False)
class AdaptResponse:
    """An adapted policy and statistics of its inner steps.

    Attributes:
        policy: the adapted policy, under a new name.
        adapted_from: name of the policy before adaptation.
        steps: statistics of each inner step.
        return_before, return_after: mean return in simulation; None if not measured.
    """

    policy: ServedPolicy
    adapted_from: str
    steps: tuple[AdaptationStats, ...]
    return_before: float | None
    return_after: float | None


@dataclass(frozen=True, eq=False)
class SupportPolicies:
    """The policies that act in the episodes of a support set.

    Attributes:
        policy: name of the policy that the episodes are to adapt.
        policies: name of the policy that acts in each of the K episodes; episodes that act alike
            share one.
        context_offsets: (K, C), to be sent with the trajectories; None without a context.
        expires_in_s: lifetime of the policies; None if none was added.
    """

    policy: str
    policies: list[str]
    context_offsets: NDArray[np.float32] | None
    expires_in_s: float | None


async def add_support_policies(
    policy: ServedPolicy, episodes: int | None, add_policy: AddPolicy
) -> SupportPolicies:
    """Add the policies that act in the episodes of a support set of ``policy``.

    Without a context that is ``policy`` itself, and none is added.

    Args:
        policy: the policy to adapt.
        episodes: K; as in training if None.
        add_policy: stores a policy.

    Raises:
        ApiError: ``episodes`` is too small to move a context by (422).
    """
    try:
        agents = policy.agent.support_agents(episodes)
        offsets = policy.agent.context_offsets(episodes)
    except UserError as error:
        raise ApiError(422, f"episodes: {error}") from None
    names, lifetimes = {id(policy.agent): policy.name}, []
    for agent in agents:
        if id(agent) not in names:
            added = ServedPolicy(new_policy_name(), agent, policy.task)
            lifetimes.append(await add_policy(added))
            names[id(agent)] = added.name
    return SupportPolicies(
        policy.name, [names[id(agent)] for agent in agents], offsets, min(lifetimes, default=None)
    )


def handle_adapt_request(
    content: bytes | bytearray,
    find_policy: FindPolicy,
    *,
    limits: RequestLimits,
    max_env_steps: int,
) -> AdaptResponse | ApiError:
    """Adapt a policy as a request asks, or return the error to answer with.

    The body is parsed here, not where requests arrive: a large one takes a second, in which no
    other request would be answered. The error is returned, not raised: Ray would wrap an exception
    and log its traceback.

    Args:
        content: the request's body.
        find_policy: returns the policy of a name; raises ``ApiError`` if there is none.
        limits: limits of requests.
        max_env_steps: maximum environment steps simulated for one request.
    """
    try:
        request = parse_adapt(content, limits)
        policy = find_policy(request.policy)
        _check_env_steps(policy.agent, request, max_env_steps)
        task = _find_task(policy, request)
        if request.trajectories is not None:
            return _adapt_to_trajectories(policy, request, task)
        assert task is not None, "AdaptBody requires a task or trajectories"
        return _adapt_in_simulation(policy, request, task)
    except ApiError as error:
        return error
    except UserError as error:
        return ApiError(422, str(error))


def _adapt_in_simulation(policy: ServedPolicy, request: AdaptBody, task: Task) -> AdaptResponse:
    result = adapt_in_simulation(
        policy.agent,
        task,
        steps=request.steps,
        episodes=request.episodes,
        seed=request.seed,
        eval_episodes=request.measured_episodes,
    )
    pairs = zip(pairwise(result.agents), result.support, strict=True)
    return AdaptResponse(
        ServedPolicy(new_policy_name(), result.agent, task),
        policy.name,
        tuple(adaptation_stats(before, after, support) for (before, after), support in pairs),
        _finite_or_none(result.before),
        _finite_or_none(result.after),
    )


def _adapt_to_trajectories(
    policy: ServedPolicy, request: AdaptBody, task: Task | None
) -> AdaptResponse:
    assert request.trajectories is not None
    support = to_trajectories(request.trajectories, policy.agent)
    adapted = policy.agent.adapt(support)
    before = after = math.nan
    if task is not None:
        with policy.agent.simulations() as simulations:
            before, after = (
                mean_return(
                    agent, task, request.seed, stream, request.measured_episodes, simulations
                )
                for agent, stream in ((policy.agent, BEFORE), (adapted, AFTER))
            )
    return AdaptResponse(
        ServedPolicy(new_policy_name(), adapted, task),
        policy.name,
        (adaptation_stats(policy.agent, adapted, support),),
        _finite_or_none(before),
        _finite_or_none(after),
    )


def _find_task(policy: ServedPolicy, request: AdaptBody) -> Task | None:
    if request.task is None:
        return None
    try:
        check_matches_task(policy.agent, "this service")
    except UserError as error:
        raise ApiError(422, f"task: this service cannot simulate it: {error}") from None
    return policy.agent.task(request.task)


def _check_env_steps(agent: Agent, request: AdaptBody, max_env_steps: int) -> None:
    """Reject a request whose simulation would keep other requests waiting too long."""
    if request.task is None:
        return
    settings = agent.settings
    episodes = 2 * request.measured_episodes
    if request.trajectories is None:
        steps = request.steps or max(1, settings.inner.steps)
        episodes += steps * (request.episodes or settings.meta_batch.episodes)
    env_steps = episodes * settings.task.horizon
    if env_steps > max_env_steps:
        raise ApiError(
            422,
            f"episodes: the request needs {env_steps:,} steps of simulation but at most "
            f"{max_env_steps:,} are allowed: reduce episodes, measured_episodes or steps",
        )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
