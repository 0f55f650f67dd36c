"""What the routes say about themselves in ``/openapi.json``: parameters, bodies, answers, errors.

Bodies are decoded by msgspec, of which FastAPI knows nothing, and parameters are read by hand so
that errors have one shape; the schemas of both are given to it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}

_REASONS = {
    HTTPStatus.BAD_REQUEST: "The request is malformed; the message names the field.",
    HTTPStatus.NOT_FOUND: "No such workflow, run or plan.",
    HTTPStatus.CONFLICT: "The run's id belongs to another request, or another process has it.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body or what it stands for is too large.",
    HTTPStatus.TOO_MANY_REQUESTS: "As many runs as the server takes are under way.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The disk is full, servers share no folder, or this one ends.",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    int(status): {"description": reason, "content": {"application/json": {"schema": _ERROR}}}
    for status, reason in _REASONS.items()
}
"""Every error a route of ours may answer."""


def body_of(kind: type[msgspec.Struct], **fields: Any) -> dict[str, Any]:
    """Returns ``openapi_extra`` of a route that takes a body.

    Args:
        kind: Type of the body.
        **fields: Types of fields that ``kind`` leaves undecoded.
    """
    schema = _schema(kind)
    for name, field in fields.items():
        schema["properties"][name] = _schema(field)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parameter(place: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describes an optional parameter that a route reads by itself.

    Args:
        place: ``query`` or ``header``.
    """
    return {"name": name, "in": place, "required": False, "schema": schema}


def object_of(kind: str, *fields: type[msgspec.Struct], **more: Any) -> dict[str, Any]:
    """Returns the schema of an object in an answer.

    Args:
        kind: Its ``object``.
        *fields: Types whose fields it has.
        **more: Field -> type, or its schema as a dict.
    """
    properties: dict[str, Any] = {"object": {"const": kind}}
    for one in fields:
        properties |= _schema(one)["properties"]
    for name, field in more.items():
        properties[name] = field if isinstance(field, dict) else _schema(field)
    return {"type": "object", "required": list(properties), "properties": properties}


def list_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a list in an answer."""
    return object_of("list", data={"type": "array", "items": schema})


def answering_with(
    schema: dict[str, Any],
    status: int = HTTPStatus.OK,
    description: str = "It is done.",
    media_types: tuple[str, ...] = ("application/json",),
) -> dict[int | str, dict[str, Any]]:
    """Returns ``responses`` of a route.

    Args:
        schema: Of the answer; of a stream that of one event.
    """
    content = {kind: {"schema": schema} for kind in media_types}
    return {int(status): {"description": description, "content": content}}


SERVER_SENT_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Only where the event can be gone on after."},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
"""An event of a stream."""


def _schema(kind: Any) -> dict[str, Any]:
    """Returns a JSON schema without references, which would point out of a route's part."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    whole: dict[str, Any] = _inlined(schema, components, ())
    return whole


def _inlined(schema: Any, components: dict[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, components, inside) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref")
    if name is not None:
        # What contains itself is not described further down.
        return {} if name in inside else _inlined(components[name], components, (*inside, name))
    return {
        key: _inlined(value, components, inside)
        for key, value in schema.items()
        if key != "discriminator"  # its mapping is made of references
    }
