"""Bounds on what one run may ask for, checked before anything is computed or kept.

A few hundred bytes of plan can stand for an astronomical amount of work: concatenations that double
their rows, texts that repeat other texts, conversations that grow with every turn. All of it is
counted here without being done; linear in the plan.
"""

from __future__ import annotations

from helium.errors import WorkflowError
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import (
    Concat,
    Data,
    Format,
    Input,
    Lambda,
    Llm,
    Output,
    Reference,
    Slice,
    Text,
)

MAX_CELLS = 2_000_000
"""Rows of all operators together."""
MAX_PARTS = 4_000_000
"""Pieces of text of all operators together, with texts inside texts and histories written out."""
MAX_PROMPT_CHARS = 16 << 20
"""Characters of one prompt: far more than any model's context holds."""
MAX_TEXT_CHARS = 1 << 30
"""Characters of all assembled texts of a run together."""
MAX_OUTPUTS = 128
"""Outputs of one call, as many as upstream's own batches of choices."""
_CHARS_PER_TOKEN = 4
_DEFAULT_TOKENS = 4096
_FUNCTION_CHARS = 4096


def check_limits(compiled: CompiledPlan) -> None:
    """Checks that a bound plan is of a size that can be run.

    Raises:
        WorkflowError: It is too large; names the operator and the bound.
    """
    size = _Size(compiled)
    for operator in compiled.plan.operators:
        name = operator.name
        num_rows = compiled.rows.num_rows(name)
        size.num_cells += num_rows
        _bound(name, "the rows of all operators up to it", size.num_cells, MAX_CELLS)
        match operator:
            case Input():
                column = compiled.columns[operator.column]
                values = (column,) if isinstance(column, str) else column
                size.set(name, 1, max((len(value) for value in values), default=0))
            case Data():
                size.set(name, 1, max((len(value) for value in operator.values), default=0))
            case Format():
                size.assemble(name, num_rows, [operator.text])
                size.num_chars += num_rows * size.chars[name]
                _bound(name, "the characters of all texts", size.num_chars, MAX_TEXT_CHARS)
            case Lambda():
                size.set(name, 1, _FUNCTION_CHARS)
            case Llm():
                _bound(name, "its outputs per call (n)", operator.sampling.n, MAX_OUTPUTS)
                texts = [message.content for message in operator.messages]
                if operator.prompt is not None:
                    texts.append(operator.prompt)
                size.converse(operator, num_rows, texts)
            case Slice() | Output():
                size.set(name, 1, size.chars[operator.source])
            case Concat():
                size.set(name, 1, max(size.chars[source] for source in operator.sources))


class _Size:
    """Running totals, and per operator the parts and characters of a row's text."""

    def __init__(self, compiled: CompiledPlan) -> None:
        self._compiled = compiled
        self.num_cells = self.num_parts = self.num_chars = 0
        self.parts: dict[str, int] = {}
        self.chars: dict[str, int] = {}
        self._talk: dict[str, tuple[int, int]] = {}

    def set(self, name: str, parts: int, chars: int) -> None:
        self.parts[name] = parts
        self.chars[name] = chars

    def assemble(self, name: str, num_rows: int, texts: list[Text]) -> None:
        """Counts an operator's own texts, with the texts they contain written out."""
        parts = chars = 0
        for text in texts:
            for part in text:
                if isinstance(part, Reference):
                    parts += self.parts[part.operator]
                    chars += self.chars[part.operator]
                else:
                    parts += 1
                    chars += len(part.text)
        self.num_parts += parts
        _bound(name, "the pieces of all texts up to it", self.num_parts, MAX_PARTS)
        _bound(name, "the characters of its text", chars, MAX_PROMPT_CHARS)
        self.set(name, parts, chars)

    def converse(self, operator: Llm, num_rows: int, texts: list[Text]) -> None:
        """Counts an LLM operator's prompt with its history; its output is what others read."""
        name = operator.name
        self.assemble(name, num_rows, texts)
        earlier = self._talk.get(operator.history or "", (0, 0))
        parts = earlier[0] + self.parts[name] + 1
        chars = earlier[1] + self.chars[name]
        self.num_parts += parts
        _bound(name, "the pieces of all texts up to it", self.num_parts, MAX_PARTS)
        _bound(name, "the characters of its conversation", chars, MAX_PROMPT_CHARS)
        num_tokens = operator.sampling.max_tokens or _DEFAULT_TOKENS
        output = min(num_tokens, _DEFAULT_TOKENS) * _CHARS_PER_TOKEN
        self._talk[name] = (parts, chars + output)
        self.set(name, 1, output)


def _bound(name: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        shown = str(count) if count < 10**15 else "more than 10^15"
        raise WorkflowError(
            f"operator {name!r}: {what}: {shown}, at most {limit} are run; split the batch or the "
            "workflow"
        )
