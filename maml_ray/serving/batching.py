"""Acting for many callers at once: one pass through the network for all that ask one policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.policies.action_sampler import for_environment, make_sampler
from maml_ray.serving.policy_store import ServedPolicy
from maml_ray.serving.requests import ActRequest, ApiError


@dataclass(frozen=True, eq=False)
class ActResult:
    """An answer.

    Attributes:
        policy: the name of the policy that acted.
        actions: (n, A) float32, or (n,) integers, as the environment takes them.
        log_probs: (n,) of sampled actions, to be handed back with them for an adaptation.
    """

    policy: str
    actions: NDArray[Any]
    log_probs: NDArray[np.float32] | None


def act_batch(asked: Sequence[tuple[ServedPolicy, ActRequest]]) -> list[ActResult | ApiError]:
    """An answer to each request, in order.

    Requests to one policy go through its network together, so the last bits of an action may
    depend on who asked at the same time; its noise does not.
    """
    groups: dict[str, list[int]] = {}
    for index, (policy, _) in enumerate(asked):
        groups.setdefault(policy.name, []).append(index)
    answers: dict[int, ActResult | ApiError] = {}
    for members in groups.values():
        policy = asked[members[0]][0]
        requests = [asked[index][1] for index in members]
        answers.update(zip(members, _act(policy, requests), strict=True))
    return [answers[index] for index in range(len(asked))]


def _act(policy: ServedPolicy, requests: Sequence[ActRequest]) -> list[ActResult | ApiError]:
    batch = (
        requests[0].observations
        if len(requests) == 1
        else np.concatenate([request.observations for request in requests])
    )
    with np.errstate(all="ignore"):  # what is not finite is told to who asked for it
        outputs = policy.policy.outputs(batch)
        answers, begin = [], 0
        for request in requests:
            end = begin + len(request.observations)
            answers.append(_answer(policy, request, outputs[begin:end]))
            begin = end
    return answers


def _answer(
    policy: ServedPolicy, request: ActRequest, outputs: NDArray[np.float32]
) -> ActResult | ApiError:
    if not np.isfinite(outputs).all():
        return ApiError(422, "observations are not allowed: at them the policy's actions overflow")
    rng = np.random.default_rng(request.seed) if request.explore else None
    sampler = make_sampler(policy.policy, 1, len(outputs), rng)
    actions = sampler.choose(0, outputs)
    log_probs = sampler.log_probs()[0] if request.explore else None
    return ActResult(policy.name, for_environment(policy.agent.spec, actions), log_probs)
