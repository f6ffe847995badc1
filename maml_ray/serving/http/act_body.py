"""Parse the body of a request to ``POST /act``, and encode that of the answer.

Axes: n observations, D observation size, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from maml_ray.policies.spec import PolicySpec
from maml_ray.serving.http.arrays import ObservationArray, wrong_shape
from maml_ray.serving.http.bodies import (
    BASE_POLICY,
    Name,
    Seed,
    StrictBody,
    parse_body,
    parse_query,
)
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.limits import BINARY, JSON, BodyLimits

MAX_OBSERVATIONS = 4096
"""Maximum per request to act: a larger one would delay all requests in its batch."""

ACT_MEDIA_TYPES = (JSON, BINARY)
POLICY_HEADER = b"maml-ray-policy"
"""Header of a binary answer: the name of the policy that acted."""
_MAX_NUMBER_BYTES = 32
"""Room for a number in JSON, with a comma and a line break."""
_OTHER_VALUES = 100
"""Room for the values of the body that are not numbers of observations."""


class ActOptions(StrictBody):
    """How to act: fields of the body in JSON, or parameters of the query beside a binary body."""

    policy: Name = BASE_POLICY
    explore: bool = False
    seed: Seed | None = None


class ActBody(ActOptions):
    """Body of ``POST /act`` in JSON: observations, (D,) or (n, D), and how to act."""

    observations: ObservationArray


@dataclass(frozen=True, eq=False)
class ActRequest:
    """A checked request to act.

    Attributes:
        policy: name of the policy.
        observations: (n, D), with nothing rounded: the policy says in which precision it takes
            them.
        single: whether the caller sent one observation, without the axis n.
        explore: whether to sample; otherwise mean or most probable actions.
        seed: random seed of the samples; None for fresh entropy.
        binary: whether the caller sent float32 numbers, and receives such; otherwise JSON.
    """

    policy: str
    observations: NDArray[np.floating]
    single: bool
    explore: bool
    seed: int | None
    binary: bool = False


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


def act_limits(spec: PolicySpec, max_body_bytes: int) -> BodyLimits:
    """Return the limits of the body of ``POST /act``, which is parsed between other requests."""
    max_values = MAX_OBSERVATIONS * (spec.observation_size + 1) + _OTHER_VALUES
    return BodyLimits(
        min(max_body_bytes, max_values * _MAX_NUMBER_BYTES),
        max_values,
        f"observations: at most {MAX_OBSERVATIONS:,} of {spec.observation_size:,} numbers each are "
        "allowed per request",
    )


def parse_act(
    media_type: str, content: bytes | bytearray, query: bytes, spec: PolicySpec
) -> ActRequest:
    """Parse a request to ``POST /act`` for policies of the sizes in ``spec``.

    Args:
        media_type: JSON or BINARY.
        content: the body.
        query: the URL's query.
        spec: sizes of the policies.

    Raises:
        ApiError: the body is not JSON (400), or a field or parameter is not allowed (422).
    """
    if media_type == BINARY:
        return _parse_binary(content, query, spec)
    if query:
        raise ApiError(422, "the query is for a binary body: write its parameters into the JSON")
    return parse_act_json(content, spec)


def parse_act_json(content: bytes | bytearray, spec: PolicySpec) -> ActRequest:
    """Parse a body in JSON.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    body = parse_body(ActBody, content)
    observations: NDArray[np.floating] = body.observations
    if observations.ndim > 2 or observations.shape[-1] != spec.observation_size:
        raise wrong_shape("observations", f"(n, {spec.observation_size})", observations)
    is_single = observations.ndim == 1
    if is_single:
        observations = observations[None]
    _check_number(observations)
    return ActRequest(body.policy, observations, is_single, body.explore, body.seed)


def _parse_binary(content: bytes | bytearray, query: bytes, spec: PolicySpec) -> ActRequest:
    options = parse_query(ActOptions, query, texts=["policy"])
    row_bytes = 4 * spec.observation_size
    if not content or len(content) % row_bytes:
        raise ApiError(
            422,
            f"the body must hold whole observations of {spec.observation_size} float32 numbers, "
            f"{row_bytes:,} bytes each, and has {len(content):,} bytes",
        )
    observations = np.frombuffer(content, "<f4").reshape(-1, spec.observation_size)
    _check_number(observations)
    if not np.isfinite(observations).all():
        raise ApiError(422, "observations must be finite")
    return ActRequest(
        options.policy, observations, False, options.explore, options.seed, binary=True
    )


def _check_number(observations: NDArray[np.floating]) -> None:
    if len(observations) > MAX_OBSERVATIONS:
        raise ApiError(
            422,
            f"observations: at most {MAX_OBSERVATIONS:,} per request are allowed, got "
            f"{len(observations):,}",
        )


@dataclass(frozen=True)
class EncodedAnswer:
    """The answer to a request to act.

    Attributes:
        headers: ASGI headers, without the length.
        content: the body.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes


_JSON_HEADERS = ((b"content-type", JSON.encode()),)


def encode_act(request: ActRequest, response: ActResponse) -> EncodedAnswer:
    """Return the answer to a request.

    In JSON, or if the body of the request was binary: float32 numbers, a row for each observation,
    of the action, and if it was sampled, of the sample and its log-probability. The policy's name
    is in the header ``maml-ray-policy``.
    """
    if request.binary:
        return _encode_binary(response)
    content: dict[str, Any] = {"policy": response.policy, "actions": response.actions}
    if response.samples is not None:
        content |= {"samples": response.samples, "log_probs": response.log_probs}
    if request.single:
        for name in content.keys() - {"policy"}:
            content[name] = content[name][0]
    return EncodedAnswer(_JSON_HEADERS, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def _encode_binary(response: ActResponse) -> EncodedAnswer:
    columns = [response.actions]
    if response.samples is not None and response.log_probs is not None:
        columns += [response.samples, response.log_probs]
    if len(columns) == 1:
        rows = response.actions
    else:
        rows = np.concatenate([each.reshape(len(each), -1) for each in columns], axis=1)
    headers = ((b"content-type", BINARY.encode()), (POLICY_HEADER, response.policy.encode()))
    return EncodedAnswer(headers, rows.astype("<f4", copy=False).tobytes())
