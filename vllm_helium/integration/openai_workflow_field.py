"""Hook ``openai-workflow-field``: the ``workflow`` object in the body of the OpenAI routes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import HTTPException
from pydantic import BeforeValidator, Field

from helium.protocol import MAX_CONTEXT_BYTES, WorkflowContext
from vllm_helium.request import parse_context, write_context

_server_is_on = False


def accept_workflows() -> None:
    """Makes this process read ``workflow``; a server without Helium ignores it as upstream does."""
    global _server_is_on
    _server_is_on = True


def _validate(value: Any) -> dict[str, Any] | None:
    if value is None or not _server_is_on:
        return None
    try:
        size = len(msgspec.json.encode(value))
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise ValueError(f"workflow: not plain JSON: {error}") from None
    if size > MAX_CONTEXT_BYTES:
        raise HTTPException(
            413, f"workflow: {size} bytes is too large; at most {MAX_CONTEXT_BYTES} are taken"
        )
    result: dict[str, Any] = msgspec.to_builtins(parse_context(value))
    return result


WorkflowField = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_validate),
    Field(
        description="Where this request belongs in a workflow run: a WorkflowContext (plan digest, "
        "run, operator, row, rank, segment_lengths). A hint; it never changes the output.",
    ),
]
"""Type of the field; a malformed context is HTTP 400, an oversized one HTTP 413."""


def attach_workflow(extra_args: dict[str, Any], workflow: dict[str, Any] | None) -> None:
    """Moves the validated field into ``extra_args`` for the engine."""
    context = msgspec.convert(workflow, WorkflowContext) if workflow else None
    write_context(extra_args, context)
