"""How a workflow context travels: from the API to the engine inside ``SamplingParams.extra_args``.

The edge (HTTP body, ``LLM.generate``) validates strictly and raises; the engine only reads what the
edge has written, and treats anything else as an ordinary request. This module must not import vllm.
"""

from __future__ import annotations

from typing import Any

import msgspec

from helium.errors import PlanError
from helium.protocol import WorkflowContext, decode_workflow_context

EXTRA_ARGS_KEY = "helium"
"""Our key in ``SamplingParams.extra_args``; clients cannot set it through ``vllm_xargs``."""


def parse_context(value: Any) -> WorkflowContext:
    """Validates what a caller passed as ``workflow``.

    Raises:
        PlanError: Names the field, what was expected and what was found.
    """
    if isinstance(value, WorkflowContext):
        return decode_workflow_context(msgspec.to_builtins(value))
    if not isinstance(value, dict):
        raise PlanError(f"workflow: expected an object, got {type(value).__name__}")
    return decode_workflow_context(value)


def write_context(extra_args: dict[str, Any], context: WorkflowContext | None) -> None:
    """Puts a validated context into ``extra_args``; ``None`` removes what a client put there."""
    if context is None:
        extra_args.pop(EXTRA_ARGS_KEY, None)
    else:
        extra_args[EXTRA_ARGS_KEY] = msgspec.to_builtins(context)


def read_context(extra_args: dict[str, Any] | None) -> WorkflowContext | None:
    """Returns the context the edge wrote, or ``None``; never raises."""
    raw = extra_args.get(EXTRA_ARGS_KEY) if extra_args else None
    if not isinstance(raw, dict):
        return None
    try:
        return decode_workflow_context(raw)
    except PlanError:
        return None
