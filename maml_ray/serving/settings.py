"""What a service is: the arguments of the application, on a command line or in ``serve.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maml_ray.config.error_messages import describe_validation_error
from maml_ray.config.settings import SettingsError

Count = Annotated[int, Field(ge=1)]


class ServeSettings(BaseModel):
    """Arguments of ``maml_ray.serving.ray_serve:build_app``.

    Attributes:
        run: a run folder, a run's URL in storage, or a folder of ``maml-ray adapt``; as the
            machine that holds the policies sees it.
        checkpoint: of the run: newest, best, or its number.
        replicas: processes that act, one CPU each.
        adapters: processes that adapt, one CPU each, one request at a time.
        max_policies: adapted policies that are kept.
        max_age_s: seconds that each is kept for.
        max_body_bytes: of a request.
        max_env_steps: simulated in one request to adapt.
        max_waiting: requests to adapt that may wait for an adapter; more are refused.
        adapt_timeout_s: how long a request to adapt may take, waiting included.
        token_file: holds the token that callers must present; the environment variable
            ``MAML_RAY_SERVE_TOKEN`` does the same; with neither, none is asked for.
    """

    # Not strict: `serve run module:build_app replicas=2` hands over text.
    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(min_length=1)]
    checkpoint: Annotated[str, Field(min_length=1, max_length=20, coerce_numbers_to_str=True)] = (
        "newest"
    )
    replicas: Count = 1
    adapters: Count = 1
    max_policies: Count = 1000
    max_age_s: Annotated[float, Field(gt=0, le=1e9)] = 86_400.0
    max_body_bytes: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 16_000_000
    max_env_steps: Count = 500_000
    max_waiting: Count = 16
    adapt_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    token_file: Annotated[str, Field(min_length=1)] | None = None


class StoreUserConfig(BaseModel):
    """The ``user_config`` of the deployment ``PolicyStore``: which checkpoint is live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Annotated[str, Field(min_length=1, max_length=20, coerce_numbers_to_str=True)] = (
        "newest"
    )


def parse_serve_settings(arguments: Mapping[str, Any]) -> ServeSettings:
    """Check the application's arguments.

    Raises:
        SettingsError: one is unknown, missing or out of range.
    """
    try:
        return ServeSettings.model_validate(dict(arguments))
    except ValidationError as error:
        known = list(ServeSettings.model_fields)
        message = describe_validation_error(
            error, allowed_keys=lambda place: known, noun="an argument"
        )
        raise SettingsError(message) from None


def parse_user_config(user_config: Any) -> StoreUserConfig:
    """Check a ``user_config``.

    Raises:
        SettingsError: there is something else in it.
    """
    try:
        return StoreUserConfig.model_validate(user_config)
    except ValidationError as error:
        message = describe_validation_error(
            error, prefix=("user_config",), allowed_keys=lambda place: ["checkpoint"]
        )
        raise SettingsError(message) from None
