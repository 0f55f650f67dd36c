"""The logical plan: an immutable DAG of operators, with its identity and its forms.

``LogicalPlan`` is what the language builds, what the optimizer rewrites and what templates, cost,
planner and runtime read. It owns equality, hashing, JSON and printing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import msgspec

from helium.errors import WorkflowError
from helium.json_text import decode_json
from helium.plan import canonical, conversation, printing, validation
from helium.plan.operators import Input, Llm, Message, Operator, Output
from helium.plan.rewrite import replace_texts
from helium.plan.text import canonical_text, is_canonical

PLAN_VERSION = 1
MAX_PLAN_BYTES = 256 << 20
"""Bound on the JSON of one plan; embedded data is part of it."""


class LogicalPlan(
    msgspec.Struct,
    frozen=True,
    eq=False,
    dict=True,
    weakref=True,
    forbid_unknown_fields=True,
    omit_defaults=False,
):
    """A workflow as a DAG of operators.

    Two plans are equal when their canonical JSON is: same operators, same names, same order. Use
    ``canonical()`` to compare structure alone. Constructing a plan does not check it; ``validate``
    does, and everything that makes plans here (language, JSON, optimizer) calls it.

    Attributes:
        operators: In topological order, producers first. Names are unique.
        version: Version of the JSON form.

    >>> from helium.plan.operators import Format, Input, Output
    >>> from helium.plan.text import text, Reference
    >>> plan = LogicalPlan((
    ...     Input("q", column="question"),
    ...     Format("prompt", text=text("Answer: ", Reference("q"))),
    ...     Output("answer", source="prompt"),
    ... ))
    >>> print(plan.to_text())
    q = input question
    prompt = format "Answer: {q}"
    answer = output prompt
    """

    operators: tuple[Operator, ...]
    version: int = PLAN_VERSION

    @cached_property
    def by_name(self) -> Mapping[str, Operator]:
        """Operators by name, outputs included, in plan order."""
        return MappingProxyType({operator.name: operator for operator in self.operators})

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The results the caller asked for, in plan order."""
        return tuple(operator for operator in self.operators if isinstance(operator, Output))

    @cached_property
    def llm_operators(self) -> tuple[Llm, ...]:
        """The LLM operators, in plan order."""
        return tuple(operator for operator in self.operators if isinstance(operator, Llm))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the batch's columns the plan needs, without repeats, in plan order."""
        columns = (operator.column for operator in self.operators if isinstance(operator, Input))
        return tuple(dict.fromkeys(columns))

    @cached_property
    def widths(self) -> Mapping[str, int]:
        """Outputs per row of every operator: ``n`` of an LLM operator, also through slices."""
        widths: dict[str, int] = {}
        for operator in self.operators:
            widths[operator.name] = validation.width(operator, widths)
        return MappingProxyType(widths)

    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Returns, for every operator, the names of the operators that read it, in plan order."""
        return self._consumers

    @cached_property
    def _consumers(self) -> Mapping[str, tuple[str, ...]]:
        consumers: dict[str, list[str]] = {operator.name: [] for operator in self.operators}
        for operator in self.operators:
            for name in operator.reads:
                consumers[name].append(operator.name)
        return MappingProxyType({name: tuple(names) for name, names in consumers.items()})

    def conversation(self, name: str) -> tuple[Message, ...]:
        """Returns all messages of a chat operator, its history's first.

        A history contributes its own conversation and its output as an assistant message. The texts
        may refer to operators ``name`` itself does not read; their row is the operator's own row,
        or row 0 of a scalar. Cost: the length of the conversation.
        """
        return conversation.messages(self.by_name, name)

    def validate(self, sources: Mapping[str, str] | None = None) -> None:
        """Checks every invariant of the plan; linear in its size.

        Args:
            sources: Where each operator was written (``file:line``), for messages.

        Raises:
            WorkflowError: Names the operator, what was expected, what was found and what to do.
        """
        if self.version != PLAN_VERSION:
            raise WorkflowError(
                f"plan: `version` is {self.version}, this release reads {PLAN_VERSION}; write the "
                "plan with a matching release"
            )
        validation.validate(self.operators, sources or {})

    def canonical(self) -> LogicalPlan:
        """Returns the form that depends on structure alone, not on names or order.

        Operators are numbered as a walk from the outputs (by key) finds them; what no output needs
        is left out. Plans that differ in names or in the order of independent operators have equal
        canonical forms.
        """
        return LogicalPlan(canonical.canonical_operators(self.operators))

    def to_json(self) -> bytes:
        """Returns the canonical encoding: equal plans give equal bytes in every process."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes | str) -> LogicalPlan:
        """Decodes and validates a plan.

        Raises:
            WorkflowError: The JSON, its version or the plan in it is not valid.
        """
        if len(raw) > MAX_PLAN_BYTES:
            raise WorkflowError(
                f"plan: {len(raw)} bytes is too large, at most {MAX_PLAN_BYTES} are read; pass "
                "large data as a column of the batch"
            )
        try:
            header = decode_json(raw, _Header)
            if header.version == PLAN_VERSION:
                plan = decode_json(raw, cls)
        except msgspec.ValidationError as error:
            raise WorkflowError(f"plan: {error}") from None
        except msgspec.DecodeError as error:
            raise WorkflowError(f"plan: not valid JSON: {error}") from None
        if header.version != PLAN_VERSION:
            raise WorkflowError(
                f"plan: `version` is {header.version}, this release reads {PLAN_VERSION}; write "
                "the plan with a matching release"
            )
        operators = (
            replace_texts(
                operator, lambda parts: parts if is_canonical(parts) else canonical_text(parts)
            )
            for operator in plan.operators
        )
        plan = cls(tuple(operators))
        plan.validate()
        return plan

    def digest(self) -> str:
        """Returns the SHA-256 of the canonical encoding, 64 hex digits: the plan's identity."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self._json).hexdigest()

    def to_text(self, max_text: int | None = 80) -> str:
        """Returns one line per operator, literals cut to ``max_text`` characters each."""
        return printing.to_text(self.operators, max_text)

    def to_dot(self) -> str:
        """Returns the graph in Graphviz's language."""
        return printing.to_dot(self.operators)

    def to_mermaid(self) -> str:
        """Returns the graph as a Mermaid flowchart."""
        return printing.to_mermaid(self.operators)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogicalPlan):
            return NotImplemented
        return self is other or self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __str__(self) -> str:
        return self.to_text()


class _Header(msgspec.Struct):
    version: int
