"""Adapting for a caller: to a task that is simulated here, or to what the caller collected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from maml_ray.common.errors import UserError
from maml_ray.evaluation.adaptation_stats import AdaptationStats, adaptation_stats
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.runs.adapt import (
    AFTER,
    BEFORE,
    adapt_in_simulation,
    mean_return,
    task_from_parameters,
)
from maml_ray.serving.policy_store import ServedPolicy, new_policy_name
from maml_ray.serving.requests import AdaptBody, ApiError, to_trajectories
from maml_ray.tasks.task import Task


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """An adapted policy, and what its making was like.

    Attributes:
        policy: the adapted one, with a name of its own.
        adapted_from: the name of the one before.
        steps: figures of each inner step.
        return_before, return_after: mean return in simulation; None where there was none.
    """

    policy: ServedPolicy
    adapted_from: str
    steps: tuple[AdaptationStats, ...]
    return_before: float | None
    return_after: float | None


def handle_adapt_request(
    start: ServedPolicy, request: AdaptBody, *, most_env_steps: int
) -> AdaptResult | ApiError:
    """Serve one request to adapt, within limits.

    Args:
        start: the policy to adapt.
        request: as read.
        most_env_steps: simulated, in one request.
    """
    try:
        _check_size(start.agent, request, most_env_steps)
        task = _task(start, request)
        if request.trajectories is None:
            assert task is not None, "a request without either is not read"
            return _in_simulation(start, request, task)
        return _on_callers_data(start, request, task)
    except ApiError as refusal:
        return refusal
    except UserError as error:
        return ApiError(422, str(error))


def _in_simulation(start: ServedPolicy, request: AdaptBody, task: Task) -> AdaptResult:
    outcome = adapt_in_simulation(
        start.agent,
        task,
        steps=request.steps,
        episodes=request.episodes,
        seed=request.seed,
        eval_episodes=request.measured_episodes,
    )
    pairs = zip(pairwise(outcome.agents), outcome.support, strict=True)
    steps = (adaptation_stats(before, after, support) for (before, after), support in pairs)
    return AdaptResult(
        ServedPolicy(new_policy_name(), outcome.agent, task),
        start.name,
        tuple(steps),
        _or_none(outcome.before),
        _or_none(outcome.after),
    )


def _on_callers_data(start: ServedPolicy, request: AdaptBody, task: Task | None) -> AdaptResult:
    assert request.trajectories is not None, "asked for with the caller's data alone"
    support = to_trajectories(request.trajectories, start.agent)
    adapted = start.agent.adapt(support)
    before = after = math.nan
    if task is not None:
        with start.agent.simulations() as simulations:
            before, after = (
                mean_return(
                    agent, task, request.seed, stream, request.measured_episodes, simulations
                )
                for agent, stream in ((start.agent, BEFORE), (adapted, AFTER))
            )
    return AdaptResult(
        ServedPolicy(new_policy_name(), adapted, task),
        start.name,
        (adaptation_stats(start.agent, adapted, support),),
        _or_none(before),
        _or_none(after),
    )


def _task(start: ServedPolicy, request: AdaptBody) -> Task | None:
    if request.task is None:
        return None
    try:
        check_matches_task(start.agent, "this service")
    except UserError as error:
        raise ApiError(422, f"task: nothing can be simulated here: {error}") from None
    return task_from_parameters(start.agent, request.task)


def _check_size(agent: Agent, request: AdaptBody, most: int) -> None:
    """What is simulated takes time that others wait."""
    if request.task is None:
        return
    settings = agent.settings
    episodes = 2 * request.measured_episodes
    if request.trajectories is None:
        steps = request.steps or max(1, settings.inner.steps)
        episodes += steps * (request.episodes or settings.meta_batch.episodes)
    total = episodes * settings.task.horizon
    if total > most:
        raise ApiError(
            422,
            f"episodes: {total:,} steps of simulation in one request are not allowed, at most "
            f"{most:,}: ask for fewer episodes, measured_episodes or steps",
        )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
