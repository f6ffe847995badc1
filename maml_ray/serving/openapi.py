"""What OpenAPI says of the routes: the shapes of this policy, with examples that work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from maml_ray.policies.spec import PolicySpec
from maml_ray.serving.auth import OPEN_PATHS
from maml_ray.serving.requests import MAX_OBSERVATIONS, ActBody, AdaptBody, SupportBody

Schema = dict[str, Any]

_LARGEST = float(np.finfo(np.float32).max)
_NUMBER: Schema = {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
_NULLABLE: Schema = {"type": ["number", "null"]}
_TEXT: Schema = {"type": "string"}
_ERROR: Schema = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_SENTENCES = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    404: "There is no such policy, or no longer.",
    413: "The body is too large.",
    422: "A field is not allowed: the sentence names it.",
    500: "The service failed.",
    503: "The service is busy, or a part of it is away: try again.",
}


@dataclass(frozen=True)
class RouteDocs:
    """What FastAPI is told of each route beside its function.

    Attributes:
        spec: sizes of the policies.
        example_task: parameters of a task of the family; None where there are none.
    """

    spec: PolicySpec
    example_task: dict[str, float] | None

    def act(self) -> dict[str, Any]:
        """Of ``POST /act``."""
        body = _schema(ActBody)
        one = _row(self.spec.observation_size)
        body["properties"]["observations"] = {"oneOf": [one, _many(one, MAX_OBSERVATIONS)]}
        example = {"observations": [0.0] * self.spec.observation_size}
        answer = _answer(
            policy=_TEXT,
            actions=self._one_or_many_actions(),
            log_probs={"type": ["number", "array"]},
        )
        answer["required"] = ["policy", "actions"]
        description = (
            "Actions as the environment takes them, for one observation or for many. With "
            "explore they are sampled, and come with the log-probabilities that POST /adapt takes."
        )
        return _route("Act", description, answer, 400, 404, 413, 422, body=(body, example))

    def adapt(self) -> dict[str, Any]:
        """Of ``POST /adapt``."""
        body = _schema(AdaptBody)
        body["properties"]["trajectories"] = {"anyOf": [self._support(), {"type": "null"}]}
        body["anyOf"] = [{"required": ["task"]}, {"required": ["trajectories"]}]
        step = _answer(kl=_NULLABLE, gradient_norm=_NULLABLE, support_return=_NULLABLE)
        step["properties"]["env_steps"] = {"type": "integer"}
        answer = _answer(
            policy=_TEXT,
            adapted_from=_TEXT,
            expires_in_s={"type": "number"},
            task={"type": ["object", "null"]},
            steps={"type": "array", "items": step},
            return_before=_NULLABLE,
            return_after=_NULLABLE,
        )
        example = {"task": self.example_task or {}, "seed": 0}
        description = (
            "One gradient step, or several, towards a task that is simulated here, or towards "
            "trajectories that you collected: of K episodes and T steps, actions as POST /act "
            "gave them. Leave log_probs out where this policy sampled the actions; otherwise give "
            "those of the policy that did, of the actions before policy.action_scale. What comes "
            "back is a policy of its own: act with it, adapt it again, or get it."
        )
        return _route("Adapt", description, answer, 400, 404, 413, 422, 503, body=(body, example))

    def policy(self) -> dict[str, Any]:
        """Of ``GET /policy/{name}``."""
        told = _route("Get a policy's parameters, as safetensors", _FOLDER, None, 404, 422)
        return {**told, "response_class": _Binary}

    def description(self) -> dict[str, Any]:
        """Of ``GET /policy/{name}/policy.json``."""
        return _route("Get a policy's sizes and settings", _FOLDER, {"type": "object"}, 404, 422)

    def health(self) -> dict[str, Any]:
        """Of ``GET /healthz``."""
        answer = _answer(status=_TEXT, policy=_TEXT, task=_TEXT)
        told = _route("Well, and with which checkpoint", "For probes.", answer, 503)
        del told["responses"][401]
        return told

    def _support(self) -> Schema:
        spec, schema = self.spec, _schema(SupportBody)
        one = {"type": "integer"} if spec.discrete else _row(spec.action_size)
        flags = _many({"type": "boolean"})
        schema["properties"] |= {
            "observations": _many(_many(_row(spec.observation_size))),
            "actions": _many(_many(one)),
            "rewards": _many(_many(_NUMBER)),
            "mask": _many(flags),
            "log_probs": _many(_many(_NUMBER)),
            "final_observations": _many(_row(spec.observation_size)),
            "terminated": flags,
        }
        return schema

    def _one_or_many_actions(self) -> Schema:
        one = {"type": "integer"} if self.spec.discrete else _row(self.spec.action_size)
        return {"oneOf": [one, _many(one)]}


_FOLDER = (
    "Saved as parameters.safetensors and policy.json in one folder, maml_ray.load reads them; any "
    "program with safetensors reads the first."
)


class _Binary(Response):
    media_type = "application/octet-stream"


def document_bearer_auth(app: FastAPI) -> None:
    """Have OpenAPI say that a bearer token is to be presented."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            parts = schema.setdefault("components", {})
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                if path not in OPEN_PATHS:
                    for operation in methods.values():
                        operation["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema(kind: type[BaseModel]) -> Schema:
    """A body's schema without references: where it stands, they would lead nowhere."""
    schema = kind.model_json_schema()
    schema.pop("$defs", None)
    return schema


def _row(size: int) -> Schema:
    return {"type": "array", "items": _NUMBER, "minItems": size, "maxItems": size}


def _many(item: Schema, most: int | None = None) -> Schema:
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": item, "minItems": 1, **limit}


def _answer(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _route(
    summary: str,
    description: str,
    answer: Schema | None,
    *statuses: int,
    body: tuple[Schema, Any] | None = None,
) -> dict[str, Any]:
    responses: dict[int, Any] = {
        status: {
            "description": _SENTENCES[status],
            "content": {"application/json": {"schema": _ERROR}},
        }
        for status in (*statuses, 401, 500)
    }
    if answer is not None:
        responses[200] = {
            "description": "Done.",
            "content": {"application/json": {"schema": answer}},
        }
    told: dict[str, Any] = {"summary": summary, "description": description, "responses": responses}
    if body is not None:
        content = {"application/json": {"schema": body[0], "example": body[1]}}
        told["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return told
