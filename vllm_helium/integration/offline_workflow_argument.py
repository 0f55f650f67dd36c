"""Hook ``offline-workflow-argument``: ``LLM.generate/chat/enqueue(..., workflow=...)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helium.errors import PlanError
from helium.protocol import WorkflowContext
from vllm_helium.request import parse_context, write_context

Context = WorkflowContext | dict[str, Any]
Workflow = Context | Sequence[Context | None] | None
"""One context for every prompt, or one per prompt, or none."""


def with_workflow(params: Any, workflow: Workflow) -> Any:
    """Returns sampling parameters that carry the context; the caller's own are not changed.

    Args:
        params: ``SamplingParams``, or a sequence of them, one per prompt.
        workflow: As ``Workflow`` says; a sequence is paired with the prompts one by one.

    Raises:
        PlanError: A context is malformed, or the two sequences differ in length.
    """
    if workflow is None:
        return params
    if isinstance(workflow, (WorkflowContext, dict)):
        if isinstance(params, Sequence):
            return [_carry(one, workflow) for one in params]
        return _carry(params, workflow)
    if isinstance(workflow, (str, bytes)) or not isinstance(workflow, Sequence):
        raise PlanError(
            f"workflow: expected a context or a sequence of them, got {type(workflow).__name__}"
        )
    each = params if isinstance(params, Sequence) else [params] * len(workflow)
    if len(each) != len(workflow):
        raise PlanError(
            f"workflow: {len(workflow)} contexts for {len(each)} sampling parameters; give one "
            "context per prompt"
        )
    return [_carry(one, context) for one, context in zip(each, workflow, strict=True)]


def _carry(params: Any, workflow: Context | None) -> Any:
    if workflow is None:
        return params
    copy = params.clone()
    extra_args = dict(copy.extra_args or {})
    write_context(extra_args, parse_context(workflow))
    copy.extra_args = extra_args
    return copy
