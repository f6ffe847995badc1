"""Parse JSON request bodies into checked models; errors are one sentence naming the field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from maml_ray.config.error_messages import describe_validation_error
from maml_ray.serving.http.errors import ApiError

BASE_POLICY = "base"
"""Name of the policy that adaptations start from by default: the live checkpoint."""


def _to_int(value: Any) -> Any:
    """Convert a float such as 1.0 to int: JSON Schema counts it as an integer."""
    return int(value) if type(value) is float and value.is_integer() else value


INTEGER = BeforeValidator(_to_int)
Name = Annotated[str, Field(min_length=1, max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63), INTEGER]
Model = TypeVar("Model", bound=BaseModel)


class StrictBody(BaseModel):
    """Base of request bodies: no unknown fields, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def parse_body(
    kind: type[Model], content: bytes | bytearray, nested: type[BaseModel] | None = None
) -> Model:
    """Parse a body as ``kind``.

    Args:
        kind: type of the body.
        content: JSON.
        nested: type of the objects within the body, whose fields an error may suggest.

    Raises:
        ApiError: the body is not JSON (400), or a field is not allowed (422).
    """
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error!s:.120}") from None
    return _validate(kind, data, "a field", nested)


def parse_query(kind: type[Model], query: bytes, *, texts: Collection[str]) -> Model:
    """Parse the query of a URL as ``kind``.

    Args:
        kind: type of its parameters.
        query: such as ``policy=base&explore=true&seed=3``.
        texts: parameters that are texts; the others are written as in JSON.

    Raises:
        ApiError: a parameter is not allowed (422).
    """
    if not query:
        return kind()
    data: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise ApiError(422, "the query must be of the form name=value&name=value") from None
    for name, value in pairs:
        if name in data:
            raise ApiError(422, f"the query has {name!r:.80} twice: give each parameter once")
        data[name] = value if name in texts else _parse_literal(value)
    return _validate(kind, data, "a parameter of the query", None)


def _parse_literal(value: str) -> Any:
    """Return the number, boolean or null of a query; other texts are reported by the caller."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _validate(kind: type[Model], data: Any, noun: str, nested: type[BaseModel] | None) -> Model:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ApiError(422, _describe(error, kind, noun, nested or kind)) from None


def _describe(
    error: ValidationError, kind: type[BaseModel], noun: str, nested: type[BaseModel]
) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error" and not first["loc"]:  # concerns several fields together
        return str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return "the body must be a JSON object"
    return describe_validation_error(
        error,
        noun=noun,
        allowed_keys=lambda location: list((nested if location else kind).model_fields),
    )
