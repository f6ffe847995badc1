"""Parse and check request bodies, and convert them to what the policy takes.

Errors are one sentence naming the field. Axes: n observations, K episodes, T steps, D observation
size, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
import torch
from numpy.typing import DTypeLike, NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from maml_ray.common.errors import escape_unprintable
from maml_ray.common.normalization import normalize
from maml_ray.common.numbers import MAX_MAGNITUDE
from maml_ray.config.error_messages import describe_validation_error
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import distribution, log_prob, to_torch
from maml_ray.policies.action_sampler import at_bounds, from_env_actions
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories

BASE_POLICY = "base"
"""Name of the policy that adaptations start from by default: the live checkpoint."""
MAX_OBSERVATIONS = 4096
"""Maximum per request to act: a larger one would delay all requests in its batch."""
MAX_AXES = 3
MAX_TEXT = 200
"""Longest text among a task's parameters, in characters."""


class ApiError(Exception):
    """An error that the caller receives as ``{"error": message}``.

    Attributes:
        status: HTTP status, 400 or above.
        message: one sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that the exception can be pickled
        self.status = status
        self.message = escape_unprintable(message)


def to_float32_array(value: Any) -> NDArray[np.float32]:
    """Convert nested lists of numbers to an array.

    Raises:
        ValueError: the value is something else, ragged, empty, or not finite in float32.
    """
    return to_float64_array(value).astype(np.float32)


def to_float64_array(value: Any) -> NDArray[np.float64]:
    """Convert nested lists of numbers to an array, with nothing rounded.

    Raises:
        ValueError: the value is something else, ragged, empty, or not finite in float32.
    """
    try:
        array = _to_array(value, frozenset({int, float}), "numbers", np.float64)
    except OverflowError:  # an integer beyond the range of float64
        raise ValueError("must be finite in single precision") from None
    if not (np.abs(array) < _FLOAT32_END).all():
        raise ValueError("must be finite in single precision")
    return array


def to_bool_array(value: Any) -> NDArray[np.bool_]:
    """Convert nested lists of true and false to an array.

    Raises:
        ValueError: the value is something else, ragged or empty.
    """
    return _to_array(value, frozenset({bool}), "true and false", np.bool_)


def _to_array(value: Any, types: frozenset[type], noun: str, dtype: DTypeLike) -> NDArray[Any]:
    axes, first = 0, value
    while type(first) is list and first and axes <= MAX_AXES:
        axes, first = axes + 1, first[0]
    is_empty = type(first) is list and not first and axes < MAX_AXES
    if axes > MAX_AXES or not (is_empty or (axes and _contains_only(value, axes, types))):
        raise ValueError(f"must be an array of {noun}, with at most {MAX_AXES} axes")
    try:
        with np.errstate(over="ignore"):  # infinities are reported by the caller
            array = np.array(value, dtype=dtype)
    except ValueError:
        raise ValueError("must have rows of equal length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    return array


def _contains_only(value: Any, axes: int, types: frozenset[type]) -> bool:
    """Check types row by row: 100,000 numbers take milliseconds."""
    if type(value) is not list:
        return False
    if axes == 1:
        return types.issuperset(map(type, value))
    return all(_contains_only(row, axes - 1, types) for row in value)


def _to_int(value: Any) -> Any:
    """Convert a float such as 1.0 to int: JSON Schema counts it as an integer."""
    return int(value) if type(value) is float and value.is_integer() else value


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


_INTEGER = BeforeValidator(_to_int)
FloatArray = Annotated[Any, PlainValidator(to_float32_array), WithJsonSchema({"type": "array"})]
ObservationArray = Annotated[
    Any, PlainValidator(to_float64_array), WithJsonSchema({"type": "array"})
]
BoolArray = Annotated[Any, PlainValidator(to_bool_array), WithJsonSchema({"type": "array"})]
Name = Annotated[str, Field(min_length=1, max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63), _INTEGER]
Parameter = Annotated[
    Any, PlainValidator(_to_parameter), WithJsonSchema({"type": ["number", "boolean", "string"]})
]
Body = TypeVar("Body", bound=BaseModel)
Floating = TypeVar("Floating", bound=np.floating)
_FLOAT32_END = 2.0**128 - 2.0**103
"""The smallest number that rounds to infinity in float32."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ActBody(_Body):
    """Body of ``POST /act``: observations, (D,) or (n, D), and the policy to act with."""

    observations: ObservationArray
    policy: Name = BASE_POLICY
    explore: bool = False
    seed: Seed | None = None


class SupportBody(_Body):
    """Episodes collected by the caller, with the fields of :class:`maml_ray.Trajectories`.

    Samples and actions are as returned by ``POST /act``: (K, T, A), or (K, T) for a discrete
    policy. One of them is needed; actions that were clipped do not tell what was sampled.
    """

    observations: ObservationArray
    samples: FloatArray = None
    actions: FloatArray = None
    rewards: FloatArray
    mask: BoolArray = None
    log_probs: FloatArray = None
    final_observations: ObservationArray = None
    terminated: BoolArray = None

    @model_validator(mode="after")
    def _check_actions(self) -> SupportBody:
        if (self.samples is None) is (self.actions is None):
            raise ValueError("give either samples or actions, as POST /act returns them")
        return self


class AdaptBody(_Body):
    """Body of ``POST /adapt``: a task to simulate, trajectories of the caller, or both."""

    policy: Name = BASE_POLICY
    task: Annotated[dict[Name, Parameter], Field(max_length=1000)] | None = None
    trajectories: SupportBody | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_ADAPTATION_STEPS), _INTEGER] | None = None
    episodes: Annotated[int, Field(ge=1), _INTEGER] | None = None
    measured_episodes: Annotated[int, Field(ge=0), _INTEGER] = 20
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


def parse_act(content: bytes, spec: PolicySpec) -> ActRequest:
    """Parse the body of ``POST /act`` for policies of the sizes in ``spec``.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    body = _parse(ActBody, content)
    observations: NDArray[np.floating] = body.observations
    if observations.ndim > 2 or observations.shape[-1] != spec.observation_size:
        raise _wrong_shape("observations", f"(n, {spec.observation_size})", observations)
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


def parse_adapt(content: bytes) -> AdaptBody:
    """Parse the body of ``POST /adapt``; :func:`to_trajectories` checks the shapes of arrays.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    return _parse(AdaptBody, content)


def to_trajectories(body: SupportBody, agent: Agent) -> Trajectories:
    """Convert the caller's episodes to support data for ``agent``.

    Without ``log_probs`` the actions are taken to be sampled by ``agent``, and its own
    log-probabilities are used.

    Raises:
        ApiError: the shapes do not match each other or the policy, or the mask is invalid.
    """
    spec, rewards = agent.spec, body.rewards
    if rewards.ndim != 2:
        raise _wrong_shape("rewards", "(episodes, steps)", rewards)
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
    for name, expected in shapes.items():
        array = getattr(body, name)
        if array is not None and array.shape != expected:
            raise _wrong_shape(f"trajectories.{name}", str(expected), array)
    mask = np.ones(shape, np.bool_) if body.mask is None else body.mask
    _check_mask(mask)
    _check_bootstrap(body, agent)
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
    )
    if body.log_probs is None:
        return replace(trajectories, log_probs=policy_log_probs(agent, trajectories))
    return trajectories


def policy_log_probs(agent: Agent, trajectories: Trajectories) -> NDArray[np.float32]:
    """Return log-probabilities (K, T) of the actions under ``agent``, zero after an episode."""
    observations = normalize(trajectories.observations, agent.normalizer)
    with torch.no_grad():
        policy = distribution(
            agent.spec, to_torch(agent.parameters), torch.from_numpy(observations)
        )
        log_probs = log_prob(policy, torch.from_numpy(trajectories.actions)).numpy()
    return _zero_masked(log_probs, trajectories.mask)


def _parse(kind: type[Body], content: bytes) -> Body:
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error!s:.120}") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ApiError(422, _describe(error, kind)) from None


def _describe(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error" and not first["loc"]:  # concerns several fields together
        return str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return "the body must be a JSON object"
    return describe_validation_error(
        error,
        noun="a field",
        allowed_keys=lambda location: list((SupportBody if location else kind).model_fields),
    )


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


def _wrong_shape(name: str, expected: str, array: NDArray[Any]) -> ApiError:
    return ApiError(422, f"{name} must have shape {expected}, got {array.shape}")
