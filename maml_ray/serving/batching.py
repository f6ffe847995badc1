"""Answer requests to act in batches: one forward pass for all requests to the same policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.policies.action_sampler import make_sampler, to_env_actions
from maml_ray.serving.http.act_body import ActRequest, ActResponse
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy

OnAnswer = Callable[[ActResponse | Exception], None]
"""Receives the response to a request; an :class:`ApiError` is the caller's answer."""


class ActBatcher:
    """Answer all requests of one turn of the event loop with one call of :func:`act_batch`.

    None waits for others: under load they have arrived by the time that a turn ends.

    Args:
        on_batch: called with the number of requests answered together.
    """

    def __init__(self, on_batch: Callable[[int], None] = lambda num_requests: None) -> None:
        self._on_batch = on_batch
        self._requests: list[tuple[ServedPolicy, ActRequest]] = []
        self._on_answer: list[OnAnswer] = []

    def submit(self, policy: ServedPolicy, request: ActRequest, on_answer: OnAnswer) -> None:
        """Have a request answered in this turn of the running event loop."""
        if not self._requests:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._requests.append((policy, request))
        self._on_answer.append(on_answer)

    async def act(self, policy: ServedPolicy, request: ActRequest) -> ActResponse | ApiError:
        """Return the response to a request."""
        future: asyncio.Future[ActResponse | ApiError] = asyncio.get_running_loop().create_future()

        def on_answer(answer: ActResponse | Exception) -> None:
            if future.done():  # its caller has been cancelled
                return
            if isinstance(answer, ActResponse | ApiError):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        self.submit(policy, request, on_answer)
        return await future

    def _answer_all(self) -> None:
        requests, on_answer = self._requests, self._on_answer
        self._requests, self._on_answer = [], []
        self._on_batch(len(requests))
        responses: Sequence[ActResponse | Exception]
        try:
            responses = act_batch(requests)
        except Exception as error:  # each caller's request fails and is logged
            responses = [error] * len(requests)
        for receive, response in zip(on_answer, responses, strict=True):
            receive(response)


def act_batch(requests: Sequence[tuple[ServedPolicy, ActRequest]]) -> list[ActResponse | ApiError]:
    """Return a response to each request, in order.

    Requests to the same policy share a forward pass, which computes each row on its own: the
    actions are those of :meth:`maml_ray.Agent.act` to the last bit, whatever else is in the batch.
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
    """Return the responses of one policy."""
    rows = _split([len(request.observations) for request in requests])
    with np.errstate(all="ignore"):  # overflow is reported to the caller that caused it
        outputs = policy.numpy_policy.forward(
            _concatenate([request.observations for request in requests])
        )
        is_finite = np.logical_and.reduce(np.isfinite(outputs), axis=1)
        responses: dict[int, ActResponse | ApiError] = {}
        for members, rng in _by_noise(requests):
            group = outputs
            if len(members) < len(requests):
                group = _concatenate([outputs[rows[member]] for member in members])
            sizes = [len(requests[member].observations) for member in members]
            sampled = _sample(policy, group, sizes, rng)
            responses.update(zip(members, sampled, strict=True))
    if not is_finite.all():
        for index, part in enumerate(rows):
            if not is_finite[part].all():
                responses[index] = ApiError(
                    422, "observations: the policy's outputs overflow at these values"
                )
    return [responses[index] for index in range(len(requests))]


def _by_noise(
    requests: Sequence[ActRequest],
) -> Iterator[tuple[list[int], np.random.Generator | None]]:
    """Yield groups of requests and the generator of their noise: each seed has one of its own."""
    greedy, unseeded = [], []
    for index, request in enumerate(requests):
        if not request.explore:
            greedy.append(index)
        elif request.seed is None:
            unseeded.append(index)
        else:
            yield [index], np.random.default_rng(request.seed)
    if greedy:
        yield greedy, None
    if unseeded:
        yield unseeded, np.random.default_rng()


def _sample(
    policy: ServedPolicy,
    outputs: NDArray[np.float32],
    sizes: Sequence[int],
    rng: np.random.Generator | None,
) -> Iterator[ActResponse]:
    """Yield the responses of requests with ``sizes`` observations each.

    Args:
        policy: the policy that acts.
        outputs: (n, A) of all of the requests, may be overwritten.
        sizes: numbers of observations, which sum up to n.
        rng: source of the noise; None for mean or most probable actions.
    """
    spec = policy.agent.spec
    sampler = make_sampler(policy.numpy_policy, 1, len(outputs), rng)
    recorded = sampler.act_on_outputs(0, outputs)
    actions = to_env_actions(spec, recorded)
    if rng is None:
        for part in _split(sizes):
            yield ActResponse(policy.name, actions[part], None, None)
        return
    samples = actions if spec.discrete else recorded
    log_probs = sampler.log_probs()[0]
    for part in _split(sizes):
        yield ActResponse(policy.name, actions[part], samples[part], log_probs[part])


def _split(sizes: Sequence[int]) -> list[slice]:
    """Return the slices of consecutive parts of ``sizes``."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _concatenate(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
