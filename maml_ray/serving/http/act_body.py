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
from maml_ray.serving.http.bodies import BASE_POLICY, Name, Seed, StrictBody, parse_body
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.http.limits import BodyLimits

MAX_OBSERVATIONS = 4096
"""Maximum per request to act: a larger one would delay all requests in its batch."""

_MAX_NUMBER_BYTES = 32
"""Room for a number in JSON, with a comma and a line break."""
_OTHER_VALUES = 100
"""Room for the values of the body that are not numbers of observations."""


class ActBody(StrictBody):
    """Body of ``POST /act``: observations, (D,) or (n, D), and the policy to act with."""

    observations: ObservationArray
    policy: Name = BASE_POLICY
    explore: bool = False
    seed: Seed | None = None


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
    """

    policy: str
    observations: NDArray[np.floating]
    single: bool
    explore: bool
    seed: int | None


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


def parse_act(content: bytes | bytearray, spec: PolicySpec) -> ActRequest:
    """Parse the body of ``POST /act`` for policies of the sizes in ``spec``.

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
    if len(observations) > MAX_OBSERVATIONS:
        raise ApiError(
            422,
            f"observations: at most {MAX_OBSERVATIONS:,} per request are allowed, got "
            f"{len(observations):,}",
        )
    return ActRequest(body.policy, observations, is_single, body.explore, body.seed)


def encode_act(request: ActRequest, response: ActResponse) -> bytes:
    """Return the body of the answer to a request."""
    content: dict[str, Any] = {"policy": response.policy, "actions": response.actions}
    if response.samples is not None:
        content |= {"samples": response.samples, "log_probs": response.log_probs}
    if request.single:
        for name in content.keys() - {"policy"}:
            content[name] = content[name][0]
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
