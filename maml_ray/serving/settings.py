"""Define and check the settings of a service, from the command line or ``serve.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from maml_ray.config.error_messages import describe_validation_error
from maml_ray.config.settings import SettingsError
from maml_ray.config.value_types import LocalPath, Location
from maml_ray.serving.http.limits import RequestLimits

Count = Annotated[int, Field(ge=1)]
Checkpoint = Annotated[str, Field(min_length=1, max_length=20, coerce_numbers_to_str=True)]


def _split(value: Any) -> Any:
    return tuple(filter(None, value.split(","))) if isinstance(value, str) else value


class ServeSettings(BaseModel):
    """Arguments of ``maml_ray.serving.ray_serve:build_app``.

    Attributes:
        run: run directory, run URL in storage, or directory written by ``maml-ray adapt``, as seen
            by the machine of the policy store: ``~`` and ``$NAME`` are its own.
        checkpoint: newest, best, or the number of a checkpoint.
        imports: modules of the user's own tasks, which the record of the run may then name;
            separated by commas on the command line of ``serve run``.
        replicas: number of processes that act, one CPU each.
        adapters: number of processes that adapt, one CPU each, one request at a time.
        max_policies: maximum number of adapted policies kept.
        max_age_s: seconds that an adapted policy is kept.
        max_body_bytes: maximum size of a request body.
        max_episode_steps: maximum steps T of an episode in a request.
        max_trajectory_steps: maximum steps of all episodes in a request, K times T.
        receive_timeout_s: seconds in which a request must arrive.
        max_connections: maximum number of connections, without Ray; more are answered with 503.
        max_env_steps: maximum environment steps simulated for one request to adapt.
        max_waiting: maximum number of requests waiting for an adapter; more are rejected.
        adapt_timeout_s: maximum seconds for a request to adapt, including its wait.
        stop_timeout_s: maximum seconds in which a service that stops answers what it has begun.
        access_log: write a line of JSON for each request to the standard output.
        token_file: file with the token that callers must present. The environment variable
            ``MAML_RAY_SERVE_TOKEN`` is the alternative; without either, no token is required.
    """

    # Not strict: `serve run module:build_app replicas=2` passes strings.
    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Location
    checkpoint: Checkpoint = "newest"
    imports: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    replicas: Count = 1
    adapters: Count = 1
    max_policies: Count = 1000
    max_age_s: Annotated[float, Field(gt=0, le=1e9)] = 86_400.0
    max_body_bytes: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 16_000_000
    max_episode_steps: Count = 10_000
    max_trajectory_steps: Count = 50_000
    receive_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 500
    max_env_steps: Count = 500_000
    max_waiting: Count = 16
    adapt_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    stop_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 25.0
    access_log: bool = False
    token_file: LocalPath | None = None

    @property
    def limits(self) -> RequestLimits:
        """Limits of requests."""
        return RequestLimits(
            self.max_body_bytes,
            self.receive_timeout_s,
            self.max_episode_steps,
            self.max_trajectory_steps,
        )


class StoreUserConfig(BaseModel):
    """The ``user_config`` of the deployment ``PolicyStore``: which checkpoint is live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Checkpoint = "newest"


def parse_serve_settings(arguments: Mapping[str, Any]) -> ServeSettings:
    """Check the application's arguments.

    Raises:
        SettingsError: an argument is unknown, missing or out of range.
    """
    try:
        return ServeSettings.model_validate(dict(arguments))
    except ValidationError as error:
        names = list(ServeSettings.model_fields)
        message = describe_validation_error(
            error, allowed_keys=lambda location: names, noun="an argument"
        )
        raise SettingsError(message) from None


def parse_user_config(user_config: Any) -> StoreUserConfig:
    """Check the ``user_config`` of the deployment ``PolicyStore``.

    Raises:
        SettingsError: it has another key, or the checkpoint is invalid.
    """
    try:
        return StoreUserConfig.model_validate(user_config)
    except ValidationError as error:
        message = describe_validation_error(
            error, prefix=("user_config",), allowed_keys=lambda location: ["checkpoint"]
        )
        raise SettingsError(message) from None
