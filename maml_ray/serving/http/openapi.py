"""Describe the routes in OpenAPI: shapes of the served policy, and examples that work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import PlainTextResponse

from maml_ray.policies.spec import PolicySpec
from maml_ray.serving.http.access import OPEN_PATHS
from maml_ray.serving.http.act_body import (
    MAX_OBSERVATIONS,
    POLICY_HEADER,
    ActBody,
    ActOptions,
)
from maml_ray.serving.http.adapt_body import AdaptBody, SupportBody, SupportPoliciesBody
from maml_ray.serving.http.limits import BINARY, RequestLimits

Schema = dict[str, Any]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBER: Schema = {"type": "number", "minimum": -_FLOAT32_MAX, "maximum": _FLOAT32_MAX}
_NULLABLE_NUMBER: Schema = {"type": ["number", "null"]}
_STRING: Schema = {"type": "string"}
_BINARY: Schema = {"type": "string", "format": "binary"}
_ERROR: Schema = {"type": "object", "properties": {"error": _STRING}, "required": ["error"]}
_STATUS_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The request comes from another server's page, and this service needs no token.",
    404: "The policy is unknown or has expired.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is declared as something else.",
    421: "The header Host is not an address of this service, which needs no token.",
    422: "A field is not allowed: the error names it.",
    500: "The service failed.",
    503: "The service is busy or partly unavailable: try again.",
}
_EXPORTED_POLICY = (
    "With parameters.safetensors and policy.json in one directory, maml_ray.load reads the policy; "
    "any program with safetensors reads the former."
)


@dataclass(frozen=True)
class RouteDocs:
    """Options of FastAPI's route decorators that document each route.

    Attributes:
        spec: sizes of the policies.
        context_size: numbers of the context that adaptations change; None without one.
        example_task: parameters of a task of the family; None if unknown.
        limits: limits of requests.
    """

    spec: PolicySpec
    context_size: int | None
    example_task: dict[str, float] | None
    limits: RequestLimits

    def act(self) -> dict[str, Any]:
        """Document ``POST /act``."""
        body = _body_schema(ActBody)
        observation = _vector(self.spec.observation_size)
        body["properties"]["observations"] = {
            "oneOf": [observation, _array(observation, MAX_OBSERVATIONS)]
        }
        example = {"observations": [0.0] * self.spec.observation_size}
        response = _object(
            policy=_STRING,
            actions={"oneOf": [self._env_action(), _array(self._env_action())]},
            samples={"oneOf": [self._action(), _array(self._action())]},
            log_probs={"type": ["number", "array"]},
        )
        response["required"] = ["policy", "actions"]
        description = (
            "Returns actions as the environment takes them, scaled and within its bounds, for one "
            "observation or for many. With explore they are sampled, and returned with the samples "
            "before policy.action_scale and action_bounds and their log-probabilities, which POST "
            "/adapt takes. A body of float32 numbers, little-endian, is answered with such, a "
            "row for each observation: its action, and with explore the sample and its "
            "log-probability. The parameters of the query are for that body."
        )
        options = _route("Act", description, response, 404, 422, body=(body, example))
        extra, answer = options["openapi_extra"], options["responses"][200]
        extra["requestBody"]["content"][BINARY] = {"schema": _BINARY}
        extra["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in _body_schema(ActOptions)["properties"].items()
        ]
        answer["content"][BINARY] = {"schema": _BINARY}
        answer["headers"] = {
            POLICY_HEADER.decode(): {
                "description": "With a binary body: the name of the policy that acted.",
                "schema": _STRING,
            }
        }
        return options

    def adapt(self) -> dict[str, Any]:
        """Document ``POST /adapt``."""
        body = _body_schema(AdaptBody)
        body["properties"]["trajectories"] = {"anyOf": [self._trajectories(), {"type": "null"}]}
        body["anyOf"] = [{"required": ["task"]}, {"required": ["trajectories"]}]
        step = _object(
            kl=_NULLABLE_NUMBER, gradient_norm=_NULLABLE_NUMBER, support_return=_NULLABLE_NUMBER
        )
        step["properties"]["env_steps"] = {"type": "integer"}
        response = _object(
            policy=_STRING,
            adapted_from=_STRING,
            expires_in_s={"type": "number"},
            task={"type": ["object", "null"]},
            steps={"type": "array", "items": step},
            return_before=_NULLABLE_NUMBER,
            return_after=_NULLABLE_NUMBER,
        )
        example = {"task": self.example_task or {}, "seed": 0}
        description = (
            "Takes one or more gradient steps toward a task that the service simulates, or one "
            "step toward trajectories that you collected: K episodes of T steps, with samples as "
            "returned by POST /act, or with actions if none of them is at a bound. Omit log_probs "
            "if this policy sampled them; otherwise send those of the policy that did. The result "
            "is a new policy: act with it, adapt it again, or download it. At most "
            f"{self.limits.max_trajectory_steps:,} steps (K times T) are allowed."
        )
        if self.context_size is not None:
            description += (
                " This service's policies adapt a context: collect each episode with the policy "
                "that POST /support names for it, and send its context_offsets. The step compares "
                "the episodes' returns, and uses no log_probs."
            )
        return _route("Adapt", description, response, 404, 422, body=(body, example))

    def support(self) -> dict[str, Any]:
        """Document ``POST /support``."""
        offsets = None if self.context_size is None else _array(_vector(self.context_size))
        response = _object(
            policy=_STRING,
            policies=_array(_STRING),
            context_offsets={"type": "null"} if offsets is None else offsets,
            expires_in_s=_NULLABLE_NUMBER,
        )
        description = (
            "Returns the names of the policies that act, with explore, in the episodes of a "
            "support set, one for each episode, before trajectories are sent to POST /adapt. They "
            "differ for policies that adapt a context: each then has a context of its own, is "
            "stored like an adapted policy, and context_offsets belong to the trajectories."
        )
        summary = "Get the policies to collect trajectories with"
        example = {"policy": "base", "episodes": 4}
        body = (_body_schema(SupportPoliciesBody), example)
        return _route(summary, description, response, 404, 422, body=body)

    def policy(self) -> dict[str, Any]:
        """Document ``GET /policy/{name}``."""
        summary = "Get a policy's parameters, as safetensors"
        options = _route(summary, _EXPORTED_POLICY, None, 404, 422)
        return {**options, "response_class": _BinaryResponse}

    def description(self) -> dict[str, Any]:
        """Document ``GET /policy/{name}/policy.json``."""
        summary = "Get a policy's sizes and settings"
        return _route(summary, _EXPORTED_POLICY, {"type": "object"}, 404, 422)

    def health(self) -> dict[str, Any]:
        """Document ``GET /healthz``."""
        response = _object(
            status=_STRING,
            policy=_STRING,
            task=_STRING,
            warnings={"type": "array", "items": _STRING},
        )
        options = _route("Check health and the live checkpoint", "For probes.", response, 503)
        del options["responses"][401]
        return options

    def metrics(self) -> dict[str, Any]:
        """Document ``GET /metrics``."""
        description = "For Prometheus, in its text format. Of the process that answers."
        options = _route("Read the service's metrics", description, None)
        del options["responses"][401]
        return {**options, "response_class": PlainTextResponse}

    def _trajectories(self) -> Schema:
        spec, schema = self.spec, _body_schema(SupportBody)
        flag: Schema = {"type": "boolean"}

        def per_episode(item: Schema) -> Schema:
            return _array(item, self.limits.max_trajectory_steps)

        def per_step(item: Schema) -> Schema:
            return per_episode(_array(item, self.limits.max_episode_steps))

        schema["properties"] |= {
            "observations": per_step(_vector(spec.observation_size)),
            "samples": per_step(self._action()),
            "actions": per_step(self._env_action()),
            "rewards": per_step(_NUMBER),
            "mask": per_step(flag),
            "log_probs": per_step(_NUMBER),
            "final_observations": per_episode(_vector(spec.observation_size)),
            "terminated": per_episode(flag),
        }
        if self.context_size is None:
            del schema["properties"]["context_offsets"]
        else:
            schema["properties"]["context_offsets"] = per_episode(_vector(self.context_size))
            schema["required"].append("context_offsets")
        return schema

    def _action(self) -> Schema:
        return {"type": "integer"} if self.spec.discrete else _vector(self.spec.action_size)

    def _env_action(self) -> Schema:
        """Return the schema of an action as the environment takes it, with its bounds."""
        bounds = self.spec.action_bounds
        if bounds is None or bounds.mode == "none":
            return self._action()
        shown = np.dtype(bounds.dtype).type  # as in JSON: 0.7, not 0.699999988
        low, high = (float(str(shown(end))) for end in (min(bounds.low), max(bounds.high)))
        vector = _vector(self.spec.action_size)
        return {**vector, "items": {**vector["items"], "minimum": low, "maximum": high}}


class _BinaryResponse(Response):
    media_type = "application/octet-stream"


def document_bearer_auth(app: FastAPI) -> None:
    """Add the bearer token to the application's OpenAPI schema."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            components = schema.setdefault("components", {})
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                if path not in OPEN_PATHS:
                    for operation in methods.values():
                        operation["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _body_schema(kind: type[BaseModel]) -> Schema:
    """Return a body's schema without ``$defs``: in a route, references to them would break."""
    schema = kind.model_json_schema()
    schema.pop("$defs", None)
    return schema


def _vector(size: int) -> Schema:
    return {"type": "array", "items": _NUMBER, "minItems": size, "maxItems": size}


def _array(item: Schema, max_items: int | None = None) -> Schema:
    limit = {} if max_items is None else {"maxItems": max_items}
    return {"type": "array", "items": item, "minItems": 1, **limit}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _route(
    summary: str,
    description: str,
    response: Schema | None,
    *statuses: int,
    body: tuple[Schema, Any] | None = None,
) -> dict[str, Any]:
    """Return route options.

    Args:
        summary, description: texts of the operation.
        response: schema of a successful JSON response; None for binary content.
        statuses: HTTP statuses of errors, besides those of all routes and of all bodies.
        body: schema and example of the request body.
    """
    of_body = () if body is None else (400, 408, 413, 415, 503)
    responses: dict[int, Any] = {
        status: {
            "description": _STATUS_DESCRIPTIONS[status],
            "content": {"application/json": {"schema": _ERROR}},
        }
        for status in (*statuses, *of_body, 401, 403, 421, 500)
    }
    if response is not None:
        responses[200] = {
            "description": "Done.",
            "content": {"application/json": {"schema": response}},
        }
    options: dict[str, Any] = {
        "summary": summary,
        "description": description,
        "responses": responses,
    }
    if body is not None:
        content = {"application/json": {"schema": body[0], "example": body[1]}}
        options["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return options
