"""What the routes say about themselves in ``/openapi.json``: bodies and errors.

Bodies are decoded by msgspec, of which FastAPI knows nothing, so their schemas are given to it.
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
    HTTPStatus.SERVICE_UNAVAILABLE: "The disk is full, or servers share no folder.",
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
