"""What callers send: read, checked, and made into what the policy takes.

A mistake is told in one sentence that names the field. Axes: n observations, K episodes, T steps,
D observation size, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
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
from maml_ray.config.error_messages import describe_validation_error
from maml_ray.config.limits import MAX_ADAPTATION_STEPS
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import distribution, log_prob, to_torch
from maml_ray.policies.action_sampler import from_env_actions
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import Trajectories


class ApiError(Exception):
    """A request cannot be served; whose fault it is says the status.

    Attributes:
        status: of HTTP: 400 and up.
        sentence: for the caller.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both: an exception that crosses processes needs them
        self.status = status
        self.message = escape_unprintable(message)


MAX_AXES = 3
_NUMBERS = frozenset({int, float})
_BOOLEANS = frozenset({bool})


def to_float32_array(value: Any) -> NDArray[np.float32]:
    """Nested lists of numbers as an array.

    Raises:
        ValueError: it is something else, of uneven rows, empty, or not finite in float32.
    """
    _check(value, _NUMBERS, "numbers")
    try:
        with np.errstate(over="ignore"):  # what is too large is found below
            array = np.array(value, dtype=np.float32)
    except OverflowError:  # a whole number beyond any float
        raise ValueError("must be finite numbers of single precision") from None
    except ValueError:
        raise ValueError("must have rows of one length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    if not np.isfinite(array).all():
        raise ValueError("must be finite numbers of single precision")
    return array


def to_bool_array(value: Any) -> NDArray[np.bool_]:
    """Nested lists of true and false as an array.

    Raises:
        ValueError: it is something else, of uneven rows, or empty.
    """
    _check(value, _BOOLEANS, "true and false")
    try:
        array = np.array(value, dtype=np.bool_)
    except ValueError:
        raise ValueError("must have rows of one length") from None
    if array.size == 0:
        raise ValueError("must not be empty")
    return array


FloatArray = Annotated[Any, PlainValidator(to_float32_array), WithJsonSchema({"type": "array"})]
"""A field of a request that is an array of numbers."""
BoolArray = Annotated[Any, PlainValidator(to_bool_array), WithJsonSchema({"type": "array"})]
"""A field of a request that is an array of true and false."""


def _check(value: Any, kinds: frozenset[type], words: str) -> None:
    axes, first = 0, value
    while type(first) is list and first and axes <= MAX_AXES:
        axes, first = axes + 1, first[0]
    empty = type(first) is list and not first and axes < MAX_AXES
    if axes > MAX_AXES or not (empty or (axes and _made_of(value, axes, kinds))):
        raise ValueError(f"must be an array of {words}, of at most {MAX_AXES} axes")


def _made_of(value: Any, axes: int, kinds: frozenset[type]) -> bool:
    if type(value) is not list:
        return False
    if axes == 1:
        return kinds.issuperset(map(type, value))
    return all(_made_of(row, axes - 1, kinds) for row in value)


BASE_POLICY = "base"
"""The name of the policy that adaptations begin from, whichever checkpoint it is."""
MAX_OBSERVATIONS = 4096
"""In one request to act: it holds up all that are answered together with it."""


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and a float to Python."""
    return int(value) if type(value) is float and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
Name = Annotated[str, Field(min_length=1, max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63), _WHOLE]
Float = Annotated[float, Field(allow_inf_nan=False)]
Body = TypeVar("Body", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ActBody(_Body):
    """``POST /act``: observations (D,) or (n, D), and whose actions are asked for."""

    observations: FloatArray
    policy: Name = BASE_POLICY
    explore: bool = False
    seed: Seed | None = None


class SupportBody(_Body):
    """Episodes that the caller collected, as :class:`maml_ray.Trajectories` has them.

    Actions are as ``POST /act`` gives them: (K, T, A), or (K, T) of a discrete policy.
    """

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    mask: BoolArray = None
    log_probs: FloatArray = None
    final_observations: FloatArray = None
    terminated: BoolArray = None


class AdaptBody(_Body):
    """``POST /adapt``: a task to simulate, or what the caller collected, or both."""

    policy: Name = BASE_POLICY
    task: Annotated[dict[Name, Float], Field(max_length=1000)] | None = None
    trajectories: SupportBody | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_ADAPTATION_STEPS), _WHOLE] | None = None
    episodes: Annotated[int, Field(ge=1), _WHOLE] | None = None
    measured_episodes: Annotated[int, Field(ge=0), _WHOLE] = 20
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_adapt_to(self) -> AdaptBody:
        if self.task is None and self.trajectories is None:
            raise ValueError("needs a task, or trajectories of your own")
        if self.trajectories is not None and (self.steps or self.episodes):
            raise ValueError(
                "steps and episodes are for support data that are simulated: with trajectories "
                "of your own there is one step, and the next is a request of its own"
            )
        return self


@dataclass(frozen=True, eq=False)
class ActRequest:
    """Checked: what to act on.

    Attributes:
        policy: the name of the policy.
        observations: (n, D) float32.
        single: whether one observation without the axis n was sent.
        explore: sample; otherwise the mean or most probable actions.
        seed: of the sampling; None for fresh entropy.
    """

    policy: str
    observations: NDArray[np.float32]
    single: bool
    explore: bool
    seed: int | None


def parse_act(content: bytes, spec: PolicySpec) -> ActRequest:
    """The body of ``POST /act``.

    Raises:
        ApiError: it is no JSON (400), or not what such a policy takes (422).
    """
    body = _read(ActBody, content)
    observations: NDArray[np.float32] = body.observations
    if observations.ndim > 2 or observations.shape[-1] != spec.observation_size:
        raise _wrong_shape("observations", f"(n, {spec.observation_size})", observations)
    single = observations.ndim == 1
    if single:
        observations = observations[None]
    if len(observations) > MAX_OBSERVATIONS:
        raise ApiError(
            422,
            f"observations: {len(observations):,} at once are not allowed: at most "
            f"{MAX_OBSERVATIONS:,}",
        )
    return ActRequest(body.policy, observations, single, body.explore, body.seed)


def parse_adapt(content: bytes) -> AdaptBody:
    """The body of ``POST /adapt``; arrays' shapes are checked by :func:`to_trajectories`.

    Raises:
        ApiError: it is no JSON (400), or not such a request (422).
    """
    return _read(AdaptBody, content)


def to_trajectories(body: SupportBody, agent: Agent) -> Trajectories:
    """The caller's episodes as support data for ``agent``.

    Log-probabilities that were left out are those of ``agent`` at the actions: the caller says by
    it that this policy sampled them.

    Raises:
        ApiError: the shapes do not fit together or the policy, or the mask is of no episodes.
    """
    spec, rewards = agent.spec, body.rewards
    if rewards.ndim != 2:
        raise _wrong_shape("rewards", "(episodes, steps)", rewards)
    shape = rewards.shape
    sizes: dict[str, tuple[int, ...]] = {
        "observations": (*shape, spec.observation_size),
        "actions": shape if spec.discrete else (*shape, spec.action_size),
        "mask": shape,
        "log_probs": shape,
        "final_observations": (shape[0], spec.observation_size),
        "terminated": (shape[0],),
    }
    for name, size in sizes.items():
        array = getattr(body, name)
        if array is not None and array.shape != size:
            raise _wrong_shape(f"trajectories.{name}", str(size), array)
    mask = np.ones(shape, np.bool_) if body.mask is None else body.mask
    _check_mask(mask)
    _check_bootstrap(body, agent)
    recorded = from_env_actions(spec, _checked_actions(body.actions, mask, spec))
    trajectories = Trajectories(
        observations=_taken(body.observations, mask),
        actions=_taken(recorded, mask),
        log_probs=_taken(rewards if body.log_probs is None else body.log_probs, mask),
        rewards=_taken(rewards, mask),
        mask=mask,
        final_observations=body.final_observations,
        terminated=body.terminated,
    )
    if body.log_probs is None:
        return replace(trajectories, log_probs=policy_log_probs(agent, trajectories))
    return trajectories


def policy_log_probs(agent: Agent, trajectories: Trajectories) -> NDArray[np.float32]:
    """Log-probabilities (K, T) of the actions under ``agent``; zero after an episode's end."""
    observations = trajectories.observations
    if agent.normalizer is not None:
        observations = agent.normalizer(observations)
    with torch.no_grad():
        policy = distribution(
            agent.spec, to_torch(agent.parameters), torch.from_numpy(observations)
        )
        found = log_prob(policy, torch.from_numpy(trajectories.actions)).numpy()
    return _taken(found, trajectories.mask)


def _read(kind: type[Body], content: bytes) -> Body:
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error!s:.120}") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ApiError(422, _sentence(error, kind)) from None


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error" and not first["loc"]:  # of several fields together
        return str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return "the body must be a JSON object"
    return describe_validation_error(
        error,
        noun="a field",
        allowed_keys=lambda place: list((SupportBody if place else kind).model_fields),
    )


def _check_mask(mask: NDArray[np.bool_]) -> None:
    if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ApiError(
            422,
            "trajectories.mask is not allowed: each episode is true for its steps, of which it "
            "has one at least, and false after its end",
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


def _checked_actions(
    actions: NDArray[np.float32], mask: NDArray[np.bool_], spec: PolicySpec
) -> NDArray[np.float32]:
    """Discrete ones are whole numbers that there are; behind an episode's end any will do."""
    if not spec.discrete:
        return actions
    first, last = spec.first_action, spec.first_action + spec.action_size - 1
    actions = np.where(mask, actions, np.float32(first))
    if (actions != np.floor(actions)).any() or actions.min() < first or actions.max() > last:
        raise ApiError(
            422, f"trajectories.actions are not allowed: whole numbers from {first} to {last}"
        )
    return actions


def _taken(array: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Zero behind an episode's end, as what is collected here."""
    return np.where(mask if array.ndim == 2 else mask[..., None], array, np.float32(0.0))


def _wrong_shape(name: str, wanted: str, array: NDArray[Any]) -> ApiError:
    return ApiError(422, f"{name} must have shape {wanted}, got {array.shape}")
