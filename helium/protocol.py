"""The two messages that cross the line between planner and engine.

``EnginePlan`` is registered once per engine; ``WorkflowContext`` rides on every request. Both are
hints: an engine that does not know the plan serves the request as ordinary traffic, and no hint may
change an output. Both are JSON with a version; every bound below is checked by ``decode_*``.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from helium.errors import PlanError
from helium.json_text import decode_json

PROTOCOL_VERSION = 1
MAX_PLAN_BYTES = 8 << 20
MAX_CONTEXT_BYTES = 16 << 10
MAX_OPERATORS = 65_536
MAX_TEMPLATE_NODES = 262_144
MAX_SEGMENTS = 1_024
MAX_INT = (1 << 53) - 1
"""Largest integer every JSON reader keeps exact."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class TemplateNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One run of the templated radix tree; node 0 is the root and holds no tokens.

    Attributes:
        parent: Index of the parent in ``EnginePlan.templates``; smaller than the node's own index.
            The root names itself.
        num_tokens: Tokens of this run: exact where ``token_ids`` is known, expected elsewhere.
        token_ids: The static tokens, or ``None`` for a run that depends on the row.
        num_uses: Calls of the whole plan expected to read this run.
        num_join_tokens: Of a run that is not static, about how many tokens are static text whose
            tokens depend on what is beside it; all of them where the run reads no value.
    """

    parent: Count
    num_tokens: Count = 0
    token_ids: tuple[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)], ...] | None = None
    num_uses: Count = 0
    num_join_tokens: Count = 0


class PlanOperator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One LLM operator as the engine needs to know it.

    Attributes:
        rank: Position in the soft schedule; smaller runs earlier.
        num_calls: Calls expected over the whole run.
        output_tokens: Expected output length of one call, in tokens.
        template: Indices of template nodes from below the root to the leaf.
        reads: LLM operators whose outputs the prompt depends on, directly or through others.
        model: Model or adapter its calls name; ``None`` is the engine's own model.
    """

    name: Name
    rank: Count
    num_calls: Count = 1
    output_tokens: Annotated[float, Meta(ge=0)] = 0.0
    template: Annotated[tuple[Count, ...], Meta(max_length=MAX_SEGMENTS)] = ()
    reads: tuple[Name, ...] = ()
    model: Name | None = None

    def __post_init__(self) -> None:
        # An integer would be written as one and read back as a float: another digest.
        msgspec.structs.force_setattr(self, "output_tokens", float(self.output_tokens))


class EnginePlan(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """What one engine is told about a workflow run before its calls arrive.

    ``version`` is required, so that a message of another version is never read as this one.
    ``cache_salt`` is the tenant whose calls these are: what is computed ahead of them is theirs.
    """

    version: int
    workflow: Name
    operators: Annotated[tuple[PlanOperator, ...], Meta(max_length=MAX_OPERATORS)]
    templates: Annotated[tuple[TemplateNode, ...], Meta(max_length=MAX_TEMPLATE_NODES)] = (
        TemplateNode(parent=0),
    )
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None

    def to_json(self) -> bytes:
        """Returns the canonical encoding: equal plans give equal bytes."""
        return msgspec.json.encode(self)

    def digest(self) -> str:
        """Returns the SHA-256 of the canonical encoding, 64 hex digits: the plan's identity."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()


class WorkflowContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where one request belongs in a run.

    Attributes:
        plan: Digest of the registered ``EnginePlan``.
        run: Caller's id of the run.
        operator: Name of the operator this request is a call of.
        row: Row of the batch.
        rank: Position in the soft schedule; ``None`` takes the operator's rank.
        segment_lengths: Prompt tokens that belong to each node of the operator's template path, in
            order; their sum is at most the prompt length. Empty when unknown.
    """

    plan: Digest
    run: Name
    operator: Name
    version: int = PROTOCOL_VERSION
    row: Count = 0
    rank: Count | None = None
    segment_lengths: Annotated[tuple[Count, ...], Meta(max_length=MAX_SEGMENTS)] = ()


_T = TypeVar("_T", EnginePlan, WorkflowContext)


def decode_engine_plan(raw: bytes | dict[str, Any]) -> EnginePlan:
    """Decodes and validates a plan from JSON bytes or an already parsed object.

    Raises:
        PlanError: Names the field, what was expected and what was found.
    """
    plan = _decode(raw, EnginePlan, MAX_PLAN_BYTES)
    _check_templates(plan)
    names = [operator.name for operator in plan.operators]
    known = set(names)
    if len(known) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise PlanError(
            f"plan: operator names must be unique, got {repeated!r} twice; rename one of them"
        )
    for operator in plan.operators:
        _check_operator(operator, plan, known)
    return plan


def decode_workflow_context(raw: bytes | dict[str, Any]) -> WorkflowContext:
    """Decodes and validates a context from JSON bytes or an already parsed object.

    Raises:
        PlanError: Names the field, what was expected and what was found.
    """
    return _decode(raw, WorkflowContext, MAX_CONTEXT_BYTES)


def _decode(raw: bytes | dict[str, Any], kind: type[_T], limit: int) -> _T:
    what = "plan" if kind is EnginePlan else "workflow"
    try:
        if isinstance(raw, (bytes, bytearray)):
            if len(raw) > limit:
                raise PlanError(f"{what}: {len(raw)} bytes is too large; at most {limit} are taken")
            message = decode_json(raw, kind)
        else:
            message = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"{what}: {error}") from None
    except msgspec.DecodeError as error:
        raise PlanError(f"{what}: not valid JSON: {error}") from None
    if message.version != PROTOCOL_VERSION:
        raise PlanError(
            f"{what}: `version` is {message.version}, this engine speaks {PROTOCOL_VERSION}; "
            "use matching releases of planner and engine"
        )
    return message


def _check_templates(plan: EnginePlan) -> None:
    if not plan.templates or plan.templates[0] != TemplateNode(parent=0):
        raise PlanError("plan: `templates[0]` must be the empty root {'parent': 0}")
    for index, node in enumerate(plan.templates[1:], start=1):
        if node.parent >= index:
            raise PlanError(
                f"plan: `templates[{index}].parent` is {node.parent}; a parent must come before "
                "its children"
            )
        if node.token_ids is not None and len(node.token_ids) != node.num_tokens:
            raise PlanError(
                f"plan: `templates[{index}].num_tokens` is {node.num_tokens}, but `token_ids` has "
                f"{len(node.token_ids)} tokens; the two must agree"
            )


def _check_operator(operator: PlanOperator, plan: EnginePlan, known: set[str]) -> None:
    where = f"plan: operator {operator.name!r}"
    parent = 0
    for index in operator.template:
        if index >= len(plan.templates) or index == 0 or plan.templates[index].parent != parent:
            raise PlanError(
                f"{where}: `template` names node {index}, which is not a child of node {parent}; "
                "give the path from below the root to the leaf"
            )
        parent = index
    for name in operator.reads:
        if name not in known:
            raise PlanError(f"{where} reads {name!r}, which is not an operator of this plan")
