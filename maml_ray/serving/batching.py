"""Answer requests to act in batches: one forward pass for all requests to the same policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.policies.action_sampler import make_sampler, to_env_actions
from maml_ray.serving.http.act_body import ActRequest
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy


@dataclass(frozen=True, eq=False)
class ActResponse:
    """Actions of one request.

    Attributes:
        policy: name of the policy that acted.
        actions: (n, A) float32, or (n,) integers, in the environment's units.
        samples: if sampled: (n, A) float32 before scale and bounds, or (n,) integers.
        log_probs: if sampled: (n,) of ``samples``; the caller sends both back to adapt.
    """

    policy: str
    actions: NDArray[Any]
    samples: NDArray[Any] | None
    log_probs: NDArray[np.float32] | None


class ActBatcher:
    """Answer all requests of one turn of the event loop with one call of :func:`act_batch`.

    None waits for others: under load they have arrived by the time that a turn ends.

    Args:
        on_batch: called with the number of requests answered together.
    """

    def __init__(self, on_batch: Callable[[int], None] = lambda num_requests: None) -> None:
        self._on_batch = on_batch
        self._requests: list[tuple[ServedPolicy, ActRequest]] = []
        self._answers: list[asyncio.Future[ActResponse | ApiError]] = []

    async def act(self, policy: ServedPolicy, request: ActRequest) -> ActResponse | ApiError:
        """Return the response to a request."""
        loop = asyncio.get_running_loop()
        if not self._requests:
            loop.call_soon(self._answer_all)
        answer: asyncio.Future[ActResponse | ApiError] = loop.create_future()
        self._requests.append((policy, request))
        self._answers.append(answer)
        return await answer

    def _answer_all(self) -> None:
        requests, answers = self._requests, self._answers
        self._requests, self._answers = [], []
        self._on_batch(len(requests))
        try:
            responses = act_batch(requests)
        except Exception as error:  # each caller's request fails and is logged
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            return
        for answer, response in zip(answers, responses, strict=True):
            if not answer.done():  # its caller may have been cancelled
                answer.set_result(response)


def act_batch(requests: Sequence[tuple[ServedPolicy, ActRequest]]) -> list[ActResponse | ApiError]:
    """Return a response to each request, in order.

    Requests to the same policy share a forward pass, so the last bits of an action may depend on
    the other requests in the batch; its noise does not.
    """
    indices_by_policy: dict[str, list[int]] = {}
    for index, (policy, _) in enumerate(requests):
        indices_by_policy.setdefault(policy.name, []).append(index)
    responses: dict[int, ActResponse | ApiError] = {}
    for indices in indices_by_policy.values():
        policy = requests[indices[0]][0]
        group = [requests[index][1] for index in indices]
        responses.update(zip(indices, _act(policy, group), strict=True))
    return [responses[index] for index in range(len(requests))]


def _act(policy: ServedPolicy, requests: Sequence[ActRequest]) -> list[ActResponse | ApiError]:
    batch = (
        requests[0].observations
        if len(requests) == 1
        else np.concatenate([request.observations for request in requests])
    )
    with np.errstate(all="ignore"):  # overflow is reported to the caller that caused it
        outputs = policy.numpy_policy.forward(batch)
        ends = np.cumsum([len(request.observations) for request in requests])[:-1]
        return [
            _respond(policy, request, part)
            for request, part in zip(requests, np.split(outputs, ends), strict=True)
        ]


def _respond(
    policy: ServedPolicy, request: ActRequest, outputs: NDArray[np.float32]
) -> ActResponse | ApiError:
    if not np.isfinite(outputs).all():
        return ApiError(422, "observations: the policy's outputs overflow at these values")
    rng = np.random.default_rng(request.seed) if request.explore else None
    sampler = make_sampler(policy.numpy_policy, 1, len(outputs), rng)
    spec, recorded = policy.agent.spec, sampler.act_on_outputs(0, outputs)
    actions = to_env_actions(spec, recorded)
    if not request.explore:
        return ActResponse(policy.name, actions, None, None)
    samples = actions if spec.discrete else recorded
    return ActResponse(policy.name, actions, samples, sampler.log_probs()[0])
